// mma.cuh: c += a b on tensor cores, of bytes: a is 16 x 32, b 32 x 8, c 16 x 8 integers, spread over the lanes of a warp.
//
// With g = lane / 4, k = lane % 4, and quads of four bytes along the axis of 32:
//   a[0], a[1]  row g, g + 8, quad k       a[2], a[3]  the same rows, quad k + 4
//   b[0], b[1]  column g, quad k, k + 4
//   c[0], c[1]  row g, column 2k, 2k + 1   c[2], c[3]  row g + 8
#pragma once

#include "rows.cuh"

static __device__ __forceinline__ void mma_bytes(int32_t c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
#pragma unroll
    for (int quarter = 0; quarter < 4; quarter++) { // Turing: 8 x 16 by 16 x 8 at once
        const int row = quarter % 2, half = quarter / 2;
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(c[2 * row]), "+r"(c[2 * row + 1])
            : "r"(a[2 * half + row]), "r"(b[half]));
    }
#else
    const int      lane    = (int) threadIdx.x % 32;
    const uint64_t rows[2] = { (uint64_t) a[1] << 32 | a[0], (uint64_t) a[3] << 32 | a[2] }; // of each half
    const uint64_t column  = (uint64_t) b[1] << 32 | b[0];
    for (int k = 0; k < 4; k++) {
        const uint64_t from_a[2] = { __shfl_sync(0xffffffffu, rows[0], lane / 4 * 4 + k), __shfl_sync(0xffffffffu, rows[1], lane / 4 * 4 + k) };
        for (int i = 0; i < 2; i++) {
            const uint64_t from_b = __shfl_sync(0xffffffffu, column, (2 * (lane % 4) + i) * 4 + k);
            for (int half = 0; half < 2; half++) {
                const int quad = (int) (from_b >> (32 * half));
                c[i]           = __dp4a((int) from_a[half], quad, c[i]);
                c[2 + i]       = __dp4a((int) (from_a[half] >> 32), quad, c[2 + i]);
            }
        }
    }
#endif
}
