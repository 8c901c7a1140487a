// error-text.h: one line of error text for a user, of an exception or for a C caller.
#pragma once

#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <typeinfo>

namespace dqrelo {

// What went wrong. The standard library's own texts name its classes and functions, which say nothing to a user.
inline std::string exception_text(const std::exception & e) {
    if (dynamic_cast<const std::bad_alloc *>(&e) != nullptr || dynamic_cast<const std::length_error *>(&e) != nullptr) {
        return "out of memory";
    }
    return typeid(e) == typeid(std::exception) ? "an unknown error" : e.what();
}

inline void copy_error(const std::string & text, char * err, size_t n_err) {
    if (err && n_err > 0) {
        snprintf(err, n_err, "%s", text.c_str());
    }
}

} // namespace dqrelo
