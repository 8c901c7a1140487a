// mingw-thread-power.h: what ggml-cpu.c needs of processthreadsapi.h and the headers of mingw-w64 10 (Debian 12) lack: from Windows 11 on
// threads say so if they are not to be slowed down. cmake/mingw.cmake includes it before every C source.
#pragma once

#include <_mingw.h>

#if __MINGW64_VERSION_MAJOR <= 10

#define THREAD_POWER_THROTTLING_CURRENT_VERSION 1
#define THREAD_POWER_THROTTLING_EXECUTION_SPEED 0x1

// Three numbers of 32 bits, as Windows documents them.
typedef struct _THREAD_POWER_THROTTLING_STATE {
    unsigned long Version;
    unsigned long ControlMask;
    unsigned long StateMask;
} THREAD_POWER_THROTTLING_STATE;

#endif
