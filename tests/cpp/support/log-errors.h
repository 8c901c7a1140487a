// log-errors.h: of llama.cpp's log the errors only, on stderr.
#pragma once

#include "llama.h"

#include <cstdio>

inline void log_errors_only() {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) { level == GGML_LOG_LEVEL_ERROR ? (void) fputs(text, stderr) : (void) 0; },
        nullptr);
}
