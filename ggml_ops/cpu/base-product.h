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

// Sets n_rows values of y to the products of so many repacked rows of W (repacked.h), whole eights, with one row of x in the type that ggml
// multiplies them with: what it does for experts.
void dqrelo_repacked_product(enum ggml_type type, const void * rows, int64_t n_rows, const void * x, int64_t n_in, float * y);
