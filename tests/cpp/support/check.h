// check.h: the whole test framework. A case prints its name; a failed check prints where and what; main ends with finish().
#pragma once

#include <cstdio>

namespace check {

inline int n_passed = 0;
inline int n_failed = 0;

inline void begin(const char * name) {
    printf("%s\n", name);
    fflush(stdout);
}

inline void result(bool good, const char * what, const char * file, int line) {
    if (good) {
        ++n_passed;
        return;
    }
    ++n_failed;
    printf("  %s:%d: failed: %s\n", file, line, what);
}

// Returns the exit status of main.
inline int finish() {
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 ? 0 : 1;
}

} // namespace check

#define CHECK(condition) check::result((condition), #condition, __FILE__, __LINE__)
