// base-product.h: ggml's own product for rows of a node that computes it (ggml_dqrelo_fold) and does not fold the delta into it.
#pragma once

#include "ggml.h"

#include <stddef.h>

struct ggml_compute_params;

// Returns the bytes of work memory for all rows of the node.
size_t dqrelo_base_product_bytes(const struct ggml_tensor * node, int n_threads);

// Sets rows r0 to r0 + n - 1 of the node to W x. Every thread calls it, with a barrier of all threads before they call it again. `memory`
// has dqrelo_base_product_bytes.
void dqrelo_base_product(const struct ggml_compute_params * params, const struct ggml_tensor * node, int64_t r0, int64_t n, void * memory,
                         size_t n_bytes);

// What ggml multiplies the experts of a node in, as a rule where an expert has several rows: tiles. 0 bytes of work memory, `scratch`,
// where it has none of the weight's type. Sets n_rows rows of the node, {place among the token's experts, token} each, to W x of a matrix,
// and returns true; or returns false where so few rows go one by one. x are all rows of src[1] in the type that ggml multiplies them with.
// Every thread calls it.
size_t dqrelo_tiled_experts_bytes(const struct ggml_tensor * node, int n_threads);
bool   dqrelo_tiled_experts(const struct ggml_compute_params * params, const struct ggml_tensor * node, int64_t matrix,
                            const int32_t (*rows)[2], int64_t n_rows, void * x, void * scratch);

// Sets n_rows values of y to the products of so many repacked rows of W (repacked.h), whole eights, with one row of x in the type that ggml
// multiplies them with: what it does for experts.
void dqrelo_repacked_product(enum ggml_type type, const void * rows, int64_t n_rows, const void * x, int64_t n_in, float * y);
