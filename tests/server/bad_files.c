// For LD_PRELOAD: files that behave badly.
//
// HANG: to open a file whose path has this in it, or to look at it, lasts for ever, as on a network file system whose server is gone. With
// HANG_SINCE only from the moment on at which a file of that name exists.
// TEAR: when files whose paths have this in them are read from, the file TEAR_WITH is copied over them: after read TEAR_FIRST, counted
// from 0, to TEAR_LAST.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static void hang_on(const char * path) {
    const char * part  = getenv("HANG");
    const char * since = getenv("HANG_SINCE");
    if (part != NULL && strstr(path, part) != NULL && (since == NULL || access(since, F_OK) == 0)) {
        while (1) {
            pause();
        }
    }
}

#define NEXT(name) dlsym(RTLD_NEXT, #name)

#define HANGING_OPEN(name)                                                                                                                 \
    int name(const char * path, int flags, ...) {                                                                                          \
        va_list args;                                                                                                                      \
        va_start(args, flags);                                                                                                             \
        const mode_t mode = (flags & O_CREAT) ? va_arg(args, mode_t) : 0;                                                                  \
        va_end(args);                                                                                                                      \
        hang_on(path);                                                                                                                     \
        return ((int (*)(const char *, int, ...)) NEXT(name))(path, flags, mode);                                                          \
    }

#define HANGING_STAT(name, type)                                                                                                           \
    int name(const char * path, type * status) {                                                                                           \
        hang_on(path);                                                                                                                     \
        return ((int (*)(const char *, type *)) NEXT(name))(path, status);                                                                 \
    }

HANGING_OPEN(open)
HANGING_OPEN(open64)
HANGING_STAT(stat, struct stat)
HANGING_STAT(stat64, struct stat64)
HANGING_STAT(lstat, struct stat)
HANGING_STAT(lstat64, struct stat64)

static void copy_over(const char * source, const char * target) {
    char    bytes[65536];
    ssize_t n;
    int     from = open(source, O_RDONLY), to = open(target, O_WRONLY | O_TRUNC);
    while ((n = read(from, bytes, sizeof(bytes))) > 0) {
        if (write(to, bytes, n) != n) {
            abort();
        }
    }
    close(from);
    close(to);
}

static void tear(int fd) {
    static int   n_reads = 0;
    const char * part    = getenv("TEAR");
    char         link[64], path[4096];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    const ssize_t n     = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = 0;
    if (part == NULL || strstr(path, part) == NULL) {
        return;
    }
    if (n_reads >= atoi(getenv("TEAR_FIRST")) && n_reads <= atoi(getenv("TEAR_LAST"))) {
        copy_over(getenv("TEAR_WITH"), path);
    }
    n_reads++;
}

#define TEARING(name, offset)                                                                                                              \
    ssize_t name(int fd, void * bytes, size_t n_bytes, offset at) {                                                                        \
        const ssize_t n = ((ssize_t (*)(int, void *, size_t, offset)) NEXT(name))(fd, bytes, n_bytes, at);                                 \
        tear(fd);                                                                                                                          \
        return n;                                                                                                                          \
    }

TEARING(pread, off_t)
TEARING(pread64, off64_t)
