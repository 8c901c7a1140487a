// half.h: half and bfloat16, rounded to nearest even as the conversions of CUDA. Arithmetic is that of float, rounded when it is stored.
#pragma once

#include "types.h"

#include <cmath>
#include <cstring>

struct __half {
    _Float16 value;
    __half() = default;
    __half(float f) : value((_Float16) f) {}
    __half(double f) : value((_Float16) f) {}
    __half(int i) : value((_Float16) i) {}
    operator float() const { return (float) value; }
};
typedef __half half;

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        uint32_t all;
        memcpy(&all, &f, sizeof(all));
        const bool is_nan = (all & 0x7fffffff) > 0x7f800000;
        bits              = is_nan ? 0x7fff : (uint16_t) ((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
    operator float() const {
        const uint32_t all = (uint32_t) bits << 16;
        float          f;
        memcpy(&f, &all, sizeof(f));
        return f;
    }
};
typedef __nv_bfloat16 nv_bfloat16;

struct alignas(4) __half2 {
    half x, y;
    __half2() = default;
    __half2(half x_, half y_) : x(x_), y(y_) {}
};
typedef __half2 half2;

struct alignas(4) __nv_bfloat162 {
    nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(nv_bfloat16 x_, nv_bfloat16 y_) : x(x_), y(y_) {}
};
typedef __nv_bfloat162 nv_bfloat162;

//
// conversions
//

inline float __half2float(half h) {
    return h;
}
inline half __float2half(float f) {
    return f;
}
inline half __ushort_as_half(unsigned short bits) {
    half h;
    memcpy((void *) &h, &bits, sizeof(h));
    return h;
}
inline unsigned short __half_as_ushort(half h) {
    unsigned short bits;
    memcpy(&bits, &h, sizeof(bits));
    return bits;
}
inline float __bfloat162float(nv_bfloat16 b) {
    return b;
}
inline nv_bfloat16 __float2bfloat16(float f) {
    return f;
}
inline nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    nv_bfloat16 b;
    b.bits = bits;
    return b;
}

//
// pairs: low is x, high is y
//

inline half2 make_half2(half x, half y) {
    return { x, y };
}
inline half2 __halves2half2(half x, half y) {
    return { x, y };
}
inline half2 __half2half2(half h) {
    return { h, h };
}
inline half2 __float2half2_rn(float f) {
    return { f, f };
}
inline half2 __floats2half2_rn(float x, float y) {
    return { x, y };
}
inline half2 __float22half2_rn(float2 f) {
    return { f.x, f.y };
}
inline float2 __half22float2(half2 h) {
    return { h.x, h.y };
}
inline half __low2half(half2 h) {
    return h.x;
}
inline half __high2half(half2 h) {
    return h.y;
}
inline float __low2float(half2 h) {
    return h.x;
}
inline float __high2float(half2 h) {
    return h.y;
}
inline float2 __bfloat1622float2(nv_bfloat162 b) {
    return { b.x, b.y };
}

inline half __hmax(half a, half b) {
    return fmaxf(a, b);
}
inline half __hmul(half a, half b) {
    return (float) a * (float) b;
}
inline half2 __hadd2(half2 a, half2 b) {
    return { (float) a.x + (float) b.x, (float) a.y + (float) b.y };
}
inline half2 __hmul2(half2 a, half2 b) {
    return { (float) a.x * (float) b.x, (float) a.y * (float) b.y };
}
inline half2 __hfma2(half2 a, half2 b, half2 c) {
    return { fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y) };
}
inline half2 operator+(half2 a, half2 b) {
    return __hadd2(a, b);
}
inline half2 operator-(half2 a, half2 b) {
    return { (float) a.x - (float) b.x, (float) a.y - (float) b.y };
}
inline half2 operator*(half2 a, half2 b) {
    return __hmul2(a, b);
}
inline half2 & operator+=(half2 & a, half2 b) {
    return a = a + b;
}
inline half2 & operator*=(half2 & a, half2 b) {
    return a = a * b;
}
