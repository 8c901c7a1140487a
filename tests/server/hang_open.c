// For LD_PRELOAD: opening a file whose path has HANG_OPEN in it lasts for ever, as on a network file system whose server is gone.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static void hang_on(const char * path) {
    const char * part = getenv("HANG_OPEN");
    while (part != NULL && strstr(path, part) != NULL) {
        pause();
    }
}

#define HANGING(name)                                                                    \
    int name(const char * path, int flags, ...) {                                        \
        va_list args;                                                                    \
        va_start(args, flags);                                                           \
        const mode_t mode = (flags & O_CREAT) ? va_arg(args, mode_t) : 0;                \
        va_end(args);                                                                    \
        hang_on(path);                                                                   \
        int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...)) dlsym(RTLD_NEXT, #name); \
        return next(path, flags, mode);                                                  \
    }

HANGING(open)
HANGING(open64)
