#include "log.h"

#include "llama.h"

#include <atomic>
#include <cstdio>

namespace {

std::atomic<bool> is_verbose{ false };

thread_local ggml_log_level last_level = GGML_LOG_LEVEL_NONE;
thread_local std::string    first_error; // Keeps the cause; later errors are its consequences.
thread_local bool           is_complete = false;

void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    const bool is_continued = level == GGML_LOG_LEVEL_CONT;
    if (!is_continued) {
        last_level = level;
    }
    if (last_level == GGML_LOG_LEVEL_ERROR && !is_complete) {
        first_error += text;
        is_complete = !first_error.empty() && first_error.back() == '\n';
    }
    if (is_verbose) {
        fputs(text, stderr);
    }
}

// Removes the "function: " that llama.cpp puts before its messages, and the line end.
std::string message_of(const std::string & line) {
    size_t begin = line.find(": ");
    begin        = begin == std::string::npos || line.find(' ') < begin ? 0 : begin + 2;
    size_t end   = line.find_last_not_of(" \n");
    return end == std::string::npos || end < begin ? std::string() : line.substr(begin, end + 1 - begin);
}

} // namespace

void log_install(bool verbose) {
    is_verbose = verbose;
    llama_log_set(on_log, nullptr);
}

void log_clear() {
    first_error.clear();
    is_complete = false;
}

std::string log_first_error(const std::string & fallback) {
    const std::string text = message_of(first_error);
    return text.empty() ? fallback : text;
}
