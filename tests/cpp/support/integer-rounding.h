// integer-rounding.h: what it adds to the error of a row when products are those of integers of 16 bits (kernels.h).
#pragma once

#include "random-entry.h"

#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

// The variance of sum_j a_j b_j where both are rounded: an error is uniform within half a step, and has the variance step^2 / 12.
inline double integer_variance(const double * a, const double * b, int64_t n) {
    double sum = 0.0;
    for (int64_t j0 = 0; j0 < n; j0 += DQRELO_I16_COLUMNS) {
        const int64_t end   = std::min<int64_t>(n, j0 + DQRELO_I16_COLUMNS);
        double        a_max = 0.0, b_max = 0.0, a_squares = 0.0, b_squares = 0.0;
        for (int64_t j = j0; j < end; j++) {
            a_max = std::max(a_max, std::fabs(a[j]));
            b_max = std::max(b_max, std::fabs(b[j]));
            a_squares += a[j] * a[j];
            b_squares += b[j] * b[j];
        }
        sum += (a_squares * b_max * b_max + b_squares * a_max * a_max) / (12.0 * DQRELO_I16_MAX * DQRELO_I16_MAX);
    }
    return sum;
}

// The variance of (A (B (c . x)))_i for every i, where B is rounded with c in it, then what it gives, and A.
inline std::vector<double> decoded_variance(const random_entry & r, const float * x) {
    const dqrelo_entry & e    = r.e;
    const int64_t        rank = e.plane_ranks[0];
    std::vector<double>  row(x, x + e.n_in), b((size_t) e.n_in), z((size_t) rank), z_variance((size_t) rank), out;
    for (int64_t k = 0; k < rank; k++) {
        for (int64_t j = 0; j < e.n_in; j++) {
            b[(size_t) j] = r.signs.b[(size_t) (k * e.n_in + j)] * r.cscale_at(j);
            z[(size_t) k] += b[(size_t) j] * row[(size_t) j];
        }
        z_variance[(size_t) k] = integer_variance(b.data(), row.data(), e.n_in);
    }
    for (int64_t i = 0; i < e.n_out; i++) {
        const double * a   = r.signs.a.data() + i * rank;
        double         sum = integer_variance(a, z.data(), rank);
        for (int64_t k = 0; k < rank; k++) {
            sum += a[k] * a[k] * z_variance[(size_t) k];
        }
        out.push_back(sum);
    }
    return out;
}
