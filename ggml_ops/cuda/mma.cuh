// mma.cuh: c += a b on tensor cores: a has 16 rows of 8 words, b 8 columns of 8 words, c is 16 x 8, spread over the lanes of a warp. A word
// is four bytes (c: integers) or two F16 (c: F32).
//
// With g = lane / 4 and k = lane % 4:
//   a[0], a[1]  row g, g + 8, word k       a[2], a[3]  the same rows, word k + 4
//   b[0], b[1]  column g, word k, k + 4
//   c[0], c[1]  row g, column 2k, 2k + 1   c[2], c[3]  row g + 8
#pragma once

#include "rows.cuh"

// Computes what tensor cores do from the same fragments. dot(x, y, c) is c plus the product of two words.
template <typename C, typename F>
static __device__ __forceinline__ void mma_plain(C c[4], const uint32_t a[4], const uint32_t b[2], F dot) {
    const int      lane    = (int) threadIdx.x % 32;
    const uint64_t rows[2] = { (uint64_t) a[1] << 32 | a[0], (uint64_t) a[3] << 32 | a[2] }; // They hold the rows of each half.
    const uint64_t column  = (uint64_t) b[1] << 32 | b[0];
    for (int k = 0; k < 4; k++) {
        const uint64_t from_a[2] = { __shfl_sync(0xffffffffu, rows[0], lane / 4 * 4 + k),
                                     __shfl_sync(0xffffffffu, rows[1], lane / 4 * 4 + k) };
        for (int i = 0; i < 2; i++) {
            const uint64_t from_b = __shfl_sync(0xffffffffu, column, (2 * (lane % 4) + i) * 4 + k);
            for (int half = 0; half < 2; half++) {
                const uint32_t word = (uint32_t) (from_b >> (32 * half));
                c[i]                = dot((uint32_t) from_a[half], word, c[i]);
                c[2 + i]            = dot((uint32_t) (from_a[half] >> 32), word, c[2 + i]);
            }
        }
    }
}

static __device__ __forceinline__ void mma_bytes(int32_t c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
#pragma unroll
    for (int quarter = 0; quarter < 4; quarter++) { // Turing takes 8 x 16 by 16 x 8 at once.
        const int row = quarter % 2, half = quarter / 2;
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
            : "+r"(c[2 * row]), "+r"(c[2 * row + 1])
            : "r"(a[2 * half + row]), "r"(b[half]));
    }
#else
    mma_plain(c, a, b, [](uint32_t x, uint32_t y, int32_t sum) { return __dp4a((int) x, (int) y, sum); });
#endif
}

static __device__ __forceinline__ void mma_halves(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
#pragma unroll
    for (int half = 0; half < 2; half++) { // Turing takes 16 x 8 by 8 x 8 at once.
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#else
    mma_plain(c, a, b, [](uint32_t x, uint32_t y, float sum) {
        const float low =
            __half2float(__ushort_as_half((unsigned short) (x & 0xffff))) * __half2float(__ushort_as_half((unsigned short) (y & 0xffff)));
        return sum + low +
               __half2float(__ushort_as_half((unsigned short) (x >> 16))) * __half2float(__ushort_as_half((unsigned short) (y >> 16)));
    });
#endif
}
