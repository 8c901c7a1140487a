// half.h: half and bfloat16, rounded to nearest even as the conversions of CUDA.
#pragma once

#include "types.h"

#include <cstring>

struct __half {
    _Float16 value;
};
typedef __half half;

struct __nv_bfloat16 {
    uint16_t bits;
};
typedef __nv_bfloat16 nv_bfloat16;

struct alignas(4) __half2 {
    half x, y;
};
typedef __half2 half2;

struct alignas(4) __nv_bfloat162 {
    nv_bfloat16 x, y;
};
typedef __nv_bfloat162 nv_bfloat162;

inline float __half2float(half h) {
    return (float) h.value;
}
inline half __float2half(float f) {
    return { (_Float16) f };
}
inline half __ushort_as_half(unsigned short bits) {
    half h;
    memcpy(&h, &bits, sizeof(h));
    return h;
}
inline unsigned short __half_as_ushort(half h) {
    unsigned short bits;
    memcpy(&bits, &h, sizeof(bits));
    return bits;
}
inline float2 __half22float2(half2 h) {
    return { (float) h.x.value, (float) h.y.value };
}
inline half2 __floats2half2_rn(float x, float y) {
    return { __float2half(x), __float2half(y) };
}

inline float __bfloat162float(nv_bfloat16 b) {
    const uint32_t bits = (uint32_t) b.bits << 16;
    float          f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}
inline nv_bfloat16 __float2bfloat16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    if ((bits & 0x7fffffff) > 0x7f800000) { // NaN
        return { 0x7fff };
    }
    return { (uint16_t) ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) };
}
inline nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return { bits };
}
