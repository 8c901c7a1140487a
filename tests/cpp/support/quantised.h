// quantised.h: rows of activations as the kernels quantise them, and the tables that they make of a row.
#pragma once

#include "check.h"

#include "cpu/kernels.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

inline std::string format(const char * fmt, ...) __attribute__((format(printf, 1, 2)));
inline std::string format(const char * fmt, ...) {
    char    text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return text;
}

struct quantised {
    std::vector<int8_t>     q;
    std::vector<dqrelo_act> act;
};

inline quantised quantise(const dqrelo_kernels * kernels, const std::vector<std::vector<float>> & x, const float * cscale) {
    const int64_t n = (int64_t) x[0].size();
    quantised     out;
    out.q.resize(x.size() * (size_t) dqrelo_q_bytes(n), 99);
    out.act.resize(x.size(), { NAN, -1, &out }); // as memory that was used before
    for (size_t t = 0; t < x.size(); t++) {
        kernels->quantize_row(x[t].data(), cscale, n, out.q.data() + t * (size_t) dqrelo_q_bytes(n), &out.act[t]);
        CHECK(out.act[t].tables == nullptr);
    }
    return out;
}

// Returns row t of q as integers, with the zeros up to a multiple of 64.
inline std::vector<int32_t> integers(const dqrelo_kernels * kernels, const quantised & a, int t, int64_t n) {
    const int8_t *       q = a.q.data() + t * dqrelo_q_bytes(n);
    std::vector<int32_t> out;
    for (int64_t j = 0; j < (n + 63) / 64 * 64; j++) {
        const int64_t place = dqrelo_q_place(kernels->interleaves, j);
        out.push_back(256 * q[place] + q[place + 64]);
    }
    return out;
}

struct alignas(64) cache_line {
    uint8_t bytes[64];
};

// Makes tables of a row, where the kernels have any, and returns them: no more lines of memory than they ask for.
inline std::vector<cache_line> make_tables(const dqrelo_kernels * kernels, const int8_t * q, int64_t n, dqrelo_act * act) {
    std::vector<cache_line> lines;
    if (kernels->make_tables) {
        lines.resize((size_t) (kernels->tables_bytes(n) + 63) / 64);
        kernels->make_tables(q, n, lines.data(), act);
        CHECK(act->tables == nullptr || act->tables == lines.data());
    }
    return lines;
}
