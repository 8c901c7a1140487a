# Toolchain for 64-bit Windows on another machine: -DCMAKE_TOOLCHAIN_FILE=cmake/mingw.cmake (Debian: g++-mingw-w64-x86-64-posix).
# Of Debian's two compilers it is the one with POSIX threads: std::thread and std::mutex are missing in the other.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER x86_64-w64-mingw32-gcc-posix)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_RC_COMPILER x86_64-w64-mingw32-windres)

# Debian and Ubuntu put the libraries of the other system here. Programs are this machine's.
set(CMAKE_FIND_ROOT_PATH /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# Windows aligns a stack to 16 bytes only, and GCC stores vectors of 32 bytes there as if it were to 32 (its bug 54412, which Debian mends).
set(CMAKE_CXX_FLAGS_INIT "-Wa,-muse-unaligned-vector-move")
set(CMAKE_C_FLAGS_INIT "${CMAKE_CXX_FLAGS_INIT} -include ${CMAKE_CURRENT_LIST_DIR}/mingw-thread-power.h")
