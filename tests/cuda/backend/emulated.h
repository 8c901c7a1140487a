// emulated.h: the emulated backend that the program was built with.
#pragma once

#include "ggml-backend.h"

#include <cstdio>
#include <cstdlib>

// Loads the module; ends the program where that fails.
inline ggml_backend_reg_t load_emulated() {
    const ggml_backend_reg_t reg = ggml_backend_load(DQRELO_EMULATED_MODULE);
    if (!reg || ggml_backend_reg_dev_count(reg) == 0) {
        fprintf(stderr, "%s: no backend, or no device in it\n", DQRELO_EMULATED_MODULE);
        exit(1);
    }
    return reg;
}
