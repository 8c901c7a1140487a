// intrinsics.h: integer and float intrinsics, atomics and fences.
#pragma once

#include "sync.h"

#include <cmath>

//
// integers
//

inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) {
        c += (int8_t) (a >> i) * (int8_t) (b >> i);
    }
    return c;
}

inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) {
        c += (a >> i & 255) * (b >> i & 255);
    }
    return c;
}

// Byte i of the result is byte s_i of {b, a}, or its sign where bit 3 of s_i is set.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t both   = (uint64_t) b << 32 | a;
    unsigned       result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned s    = selector >> (4 * i) & 15;
        const unsigned byte = (unsigned) (both >> (8 * (s & 7))) & 255;
        result |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
    }
    return result;
}

// Bytes, each for itself.
namespace cuemu {
template <typename F>
unsigned each_byte(unsigned a, unsigned b, F f) {
    unsigned result = 0;
    for (int i = 0; i < 32; i += 8) {
        result |= ((unsigned) f(a >> i & 255, b >> i & 255) & 255) << i;
    }
    return result;
}
} // namespace cuemu
inline unsigned __vsub4(unsigned a, unsigned b) {
    return cuemu::each_byte(a, b, [](unsigned x, unsigned y) { return x - y; });
}
inline unsigned __vcmpne4(unsigned a, unsigned b) {
    return cuemu::each_byte(a, b, [](unsigned x, unsigned y) { return x != y ? 255u : 0u; });
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned) ((uint64_t) a * b >> 32);
}
inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
inline int __clz(int v) {
    return v ? __builtin_clz((unsigned) v) : 32;
}
inline int __ffs(int v) {
    return __builtin_ffs(v);
}
inline int __float_as_int(float f) {
    return cuemu::from_bits<int>(cuemu::to_bits(f));
}
inline unsigned __float_as_uint(float f) {
    return cuemu::from_bits<unsigned>(cuemu::to_bits(f));
}
inline float __int_as_float(int i) {
    return cuemu::from_bits<float>(cuemu::to_bits(i));
}
inline float __uint_as_float(unsigned i) {
    return cuemu::from_bits<float>(cuemu::to_bits(i));
}

//
// floats
//

inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
// The C library has functions of these names.
namespace cuemu {
inline float exp_fast(float x) {
    return expf(x);
}
inline float log_fast(float x) {
    return logf(x);
}
} // namespace cuemu
#define __expf cuemu::exp_fast
#define __logf cuemu::log_fast
inline int __float2int_rn(float x) { // It rounds to nearest even.
    return (int) lrintf(x);
}
inline float __int2float_rn(int x) {
    return (float) x;
}

template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value>>
std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value>>
std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}

//
// memory: atomics order nothing by themselves, fences do, as in CUDA
//

template <typename T>
T __ldg(const T * p) {
    return *p;
}
template <typename T>
T __ldcg(const T * p) {
    return *p;
}

namespace cuemu {

template <typename T>
using same = typename std::common_type<T>::type; // T is not deduced from such a parameter, so that atomicAdd(float *, 1) converts.

template <typename T, typename F>
T atomic_update(T * p, F update) {
    T before;
    __atomic_load(p, &before, __ATOMIC_RELAXED);
    T after = update(before);
    while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        after = update(before);
    }
    return before;
}

// Every fence is ordered behind every earlier one: more than CUDA promises, but nothing without a fence on both sides is.
inline void fence() {
    static char order;
    release(&order);
    acquire(&order);
}

} // namespace cuemu

template <typename T>
T atomicAdd(T * p, cuemu::same<T> v) {
    return cuemu::atomic_update(p, [=](T before) { return (T) (before + v); });
}
template <typename T>
T atomicMax(T * p, cuemu::same<T> v) {
    return cuemu::atomic_update(p, [=](T before) { return before < v ? v : before; });
}
template <typename T>
T atomicMin(T * p, cuemu::same<T> v) {
    return cuemu::atomic_update(p, [=](T before) { return v < before ? v : before; });
}
template <typename T>
T atomicOr(T * p, cuemu::same<T> v) {
    return cuemu::atomic_update(p, [=](T before) { return (T) (before | v); });
}
template <typename T>
T atomicExch(T * p, cuemu::same<T> v) {
    return cuemu::atomic_update(p, [=](T) { return v; });
}
template <typename T>
T atomicCAS(T * p, cuemu::same<T> expected, cuemu::same<T> v) {
    return cuemu::atomic_update(p, [=](T before) { return before == expected ? v : before; });
}

inline void __threadfence() {
    cuemu::fence();
}
inline void __threadfence_block() {
    cuemu::fence();
}
inline void __threadfence_system() {
    cuemu::fence();
}

// In a loop that polls memory, other threads must get their turn.
inline void __nanosleep(unsigned) {
    cuemu::yield();
}

[[noreturn]] inline void __trap() {
    cuemu::fail("__trap");
}
