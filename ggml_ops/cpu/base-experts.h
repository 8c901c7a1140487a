// base-experts.h: ggml's own product for rows of experts (MATMUL_ID) of an op that computes it (ggml_dqrelo_fold) and does not fold the
// delta into them.
#pragma once

#include "plan.h"

#include "ggml.h"

#include <stddef.h>

struct ggml_compute_params;

namespace dqrelo_cpu {

// Returns the bytes of work memory: work::base.
size_t base_experts_bytes(const ggml_tensor * dst, int n_threads);

// Sets the rows of y that no group folds to W x, each bit as ggml_mul_mat_id's. Every thread calls it; all of them are done when it
// returns.
void multiply_base_experts(const ggml_compute_params * params, const ggml_tensor * dst, work & w);

} // namespace dqrelo_cpu
