// process.h: the process that something was made in.
#pragma once

#ifndef _WIN32
#include <unistd.h>
#endif

class process {
public:
    // Returns false in a forked child: there are no threads of the parent's there, and locks may be held for ever.
    bool is_this() const {
#ifdef _WIN32
        return true; // Windows has no fork.
#else
        return id == getpid();
#endif
    }

private:
#ifndef _WIN32
    const pid_t id = getpid();
#endif
};
