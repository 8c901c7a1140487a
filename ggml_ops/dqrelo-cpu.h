// dqrelo-cpu.h: the calls that ggml's CPU backend makes for the op DQRELO.
#pragma once

#include "ggml.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// Returns the bytes of work memory that a node needs on n_threads threads.
size_t dqrelo_cpu_work_bytes(const struct ggml_tensor * dst, int n_threads);

// Computes the node. Every thread calls it.
void dqrelo_cpu_forward(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
