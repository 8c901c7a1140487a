// dqrelo-cpu.h: the calls that ggml's CPU backend makes for the op DQRELO, and what it runs on.
#pragma once

#include "ggml-backend.h" // GGML_BACKEND_API
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

// Returns the instruction set that the op uses on this CPU: scalar, avx2, avx512vnni or neon. It is for reports.
GGML_BACKEND_API const char * dqrelo_cpu_isa(void);

#ifdef __cplusplus
}
#endif
