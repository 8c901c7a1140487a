// dqrelo-dq1.h: DQ1, the tensor type of packed sign bits, for ggml's type table.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Weights in a block: one byte. A row of DQ1 is ne[0]/8 bytes, bit b of byte k is column 8k+b, 1 = +1, 0 = -1 (docs/format.md).
#define DQRELO_DQ1_BLOCK 8

// Unpacks k weights (a multiple of 8) to +1 and -1. Matches ggml_to_float_t.
void dqrelo_dq1_to_float(const void * x, float * y, int64_t k);

#ifdef __cplusplus
}
#endif
