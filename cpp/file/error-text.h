// error-text.h: hands one line of error text to a C caller.
#pragma once

#include <cstdio>
#include <string>

namespace dqrelo {

inline void copy_error(const std::string & text, char * err, size_t n_err) {
    if (err && n_err > 0) {
        snprintf(err, n_err, "%s", text.c_str());
    }
}

} // namespace dqrelo
