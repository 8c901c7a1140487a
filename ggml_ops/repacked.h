// repacked.h: weights in the layout that ggml's CPU backend gives some types when it loads them (its buffer type CPU_REPACK): blocks of
// eight neighbouring rows lie together, their bytes in turns. Here single rows are read back, block by block, as they were in the file.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Returns whether the weight's buffer is of that type.
GGML_API bool dqrelo_is_repacked(const struct ggml_tensor * w);

// Returns whether dqrelo_restore_blocks knows the layout of such a weight. A layout is ggml's own affair and depends on the CPU, so it is
// not believed but tried, once for a type: blocks that ggml repacked have to come back as they were.
GGML_API bool dqrelo_can_restore(const struct ggml_tensor * w);

// Sets out to blocks first to first + n - 1 of row i of a matrix whose rows have n_blocks blocks of the type.
GGML_API void dqrelo_restore_blocks(enum ggml_type type, const void * matrix, int64_t n_blocks, int64_t i, int64_t first, int64_t n,
                                    void * out);

#ifdef __cplusplus
}
#endif
