// random-matrix.h: random values in each storage type, beside what they are in F64.
#pragma once

#include "ggml.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

using bytes = std::vector<uint8_t>;

// A random matrix in one of the factor types, and its values.
struct random_matrix {
    bytes               data;
    std::vector<double> value; // row-major
};

inline double f16_value(uint16_t h) { // It takes normal numbers only.
    const double magnitude = std::ldexp(1024 + (h & 1023), ((h >> 10) & 31) - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

// Returns a random F16 of magnitude between 2^-4 and 1.
inline uint16_t random_f16(std::mt19937 & rng) {
    return (uint16_t) ((rng() & 0x83ff) | (11 + rng() % 4) << 10);
}

template <typename T>
void append(bytes & out, T value) {
    const size_t at = out.size();
    out.resize(at + sizeof(T));
    memcpy(out.data() + at, &value, sizeof(T));
}

inline void append_block(random_matrix & m, ggml_type type, std::mt19937 & rng) {
    const uint16_t d = random_f16(rng);
    append(m.data, d);
    if (type == GGML_TYPE_Q8_0) {
        for (int j = 0; j < 32; j++) {
            const int8_t q = (int8_t) (rng() % 255 - 127);
            append(m.data, q);
            m.value.push_back(f16_value(d) * q);
        }
        return;
    }
    const bool has_fifth = type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1;
    const bool has_min   = type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1;
    double     min       = has_fifth ? -16.0 * f16_value(d) : -8.0 * f16_value(d);
    if (has_min) {
        const uint16_t h = random_f16(rng);
        append(m.data, h);
        min = f16_value(h);
    }
    const uint32_t fifth = has_fifth ? (uint32_t) rng() : 0;
    if (has_fifth) {
        append(m.data, fifth);
    }
    uint8_t packed[16]; // Values 0..15 are the low nibbles, 16..31 the high ones.
    for (uint8_t & b : packed) {
        b = (uint8_t) rng();
        append(m.data, b);
    }
    for (int j = 0; j < 32; j++) {
        const int q = (j < 16 ? packed[j] & 15 : packed[j - 16] >> 4) | (int) (fifth >> j & 1) << 4;
        m.value.push_back(f16_value(d) * q + min);
    }
}

inline random_matrix make_matrix(ggml_type type, int64_t n_values, std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    random_matrix                   m;
    while ((int64_t) m.value.size() < n_values) {
        if (type == GGML_TYPE_F32) {
            const float f = normal(rng);
            append(m.data, f);
            m.value.push_back(f);
        } else if (type == GGML_TYPE_F16) {
            const uint16_t h = random_f16(rng);
            append(m.data, h);
            m.value.push_back(f16_value(h));
        } else if (type == GGML_TYPE_BF16) {
            uint32_t    bits;
            const float f = normal(rng);
            memcpy(&bits, &f, sizeof(bits));
            append(m.data, (uint16_t) (bits >> 16));
            bits &= 0xffff0000;
            float exact;
            memcpy(&exact, &bits, sizeof(exact));
            m.value.push_back(exact);
        } else {
            append_block(m, type, rng);
        }
    }
    return m;
}
