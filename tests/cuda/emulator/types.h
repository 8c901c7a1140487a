// types.h: CUDA's qualifiers, which mean nothing on a CPU, and its vector types.
#pragma once

#include <climits>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// The script preprocess.py rewrites __shared__.

// NAME2 and NAME4 are aligned to their size, which -fsanitize=alignment checks at every access.
#define CUEMU_VECTOR(T, NAME)                                                                                                              \
    struct alignas(2 * sizeof(T)) NAME##2 {                                                                                                \
        T x, y;                                                                                                                            \
    };                                                                                                                                     \
    struct NAME##3 {                                                                                                                       \
        T x, y, z;                                                                                                                         \
    };                                                                                                                                     \
    struct alignas(4 * sizeof(T)) NAME##4 {                                                                                                \
        T x, y, z, w;                                                                                                                      \
    };                                                                                                                                     \
    inline NAME##2 make_##NAME##2(T x, T y) {                                                                                              \
        return { x, y };                                                                                                                   \
    }                                                                                                                                      \
    inline NAME##3 make_##NAME##3(T x, T y, T z) {                                                                                         \
        return { x, y, z };                                                                                                                \
    }                                                                                                                                      \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) {                                                                                    \
        return { x, y, z, w };                                                                                                             \
    }

CUEMU_VECTOR(signed char, char)
CUEMU_VECTOR(unsigned char, uchar)
CUEMU_VECTOR(short, short)
CUEMU_VECTOR(unsigned short, ushort)
CUEMU_VECTOR(int, int)
CUEMU_VECTOR(unsigned, uint)
CUEMU_VECTOR(float, float)
CUEMU_VECTOR(double, double)
CUEMU_VECTOR(long long, longlong)
#undef CUEMU_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int         warpSize = 32;
