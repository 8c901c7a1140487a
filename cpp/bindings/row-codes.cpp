// row-codes.cpp: see row-codes.h. Inner loops run over equal independent numbers, so that a compiler turns them into vectors.
#include "row-codes.h"

#include "ggml.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace {

constexpr size_t N_LANES    = 16; // partial sums of a row
constexpr size_t N_HALF_MAX = (size_t) 1 << (ROW_PLANES_MAX - 1);
constexpr size_t N_ALL_MAX  = 2 * N_HALF_MAX;
constexpr size_t N_COMPARED = 7;   // middles that are all compared with each number: more are halved
constexpr size_t N_CHUNK    = 256; // numbers of a row that are coded together

// What the magnitudes of a row can be, ascending: the values of the codes that are not negative.
struct upper_half {
    size_t                          n;
    std::array<float, N_HALF_MAX>   values, middles; // n - 1 middles between them
    std::array<uint8_t, N_HALF_MAX> codes;

    upper_half(const float * scales, int n_planes) : n((size_t) 1 << (n_planes - 1)), values(), middles(), codes() {
        const size_t                   n_all = 2 * n;
        std::array<float, N_ALL_MAX>   all;
        std::array<uint8_t, N_ALL_MAX> order;
        for (size_t code = 0; code < n_all; ++code) {
            float value = 0.0f;
            for (int q = 0; q < n_planes; ++q) {
                value += (code >> q & 1) != 0 ? scales[q] : -scales[q];
            }
            all[code]   = value;
            order[code] = (uint8_t) code;
        }
        std::stable_sort(order.begin(), order.begin() + (ptrdiff_t) n_all, [&](uint8_t a, uint8_t b) { return all[a] < all[b]; });
        for (size_t i = 0; i < n; ++i) {
            codes[i]  = order[n + i];
            values[i] = all[codes[i]];
        }
        for (size_t i = 0; i + 1 < n; ++i) {
            middles[i] = (values[i + 1] + values[i]) / 2;
        }
    }

    // Halves the middles, without a branch that could be foreseen wrongly.
    size_t place(float magnitude) const {
        size_t found = 0;
        for (size_t half = n / 2; half > 0; half /= 2) {
            found += half * (size_t) (middles[found + half - 1] < magnitude);
        }
        return found;
    }
};

// Adds up what a function gives for each number of a row.
template <typename F>
double sum_of(const float * x, size_t n, const F & f) {
    float  lanes[N_LANES] = {};
    size_t i              = 0;
    for (; i + N_LANES <= n; i += N_LANES) {
        for (size_t l = 0; l < N_LANES; ++l) {
            lanes[l] += f(x[i + l]);
        }
    }
    for (size_t l = 0; i < n; ++i, ++l) {
        lanes[l] += f(x[i]);
    }
    return std::accumulate(lanes, lanes + N_LANES, 0.0);
}

// How many magnitudes of a row are nearest to each value, and what they add up to.
struct level_sums {
    std::array<double, N_HALF_MAX> count{}, total{};

    level_sums(const float * x, size_t n, const upper_half & levels) {
        if (levels.n - 1 > N_COMPARED) {
            for (size_t i = 0; i < n; ++i) {
                const size_t place = levels.place(std::fabs(x[i]));
                count[place] += 1.0;
                total[place] += (double) std::fabs(x[i]);
            }
            return;
        }
        double n_above = (double) n;
        double above   = sum_of(x, n, [](float v) { return std::fabs(v); });
        for (size_t i = 0; i < levels.n; ++i) {
            const float  middle = levels.middles[i];
            const bool   is_top = i + 1 == levels.n;
            const double n_next = is_top ? 0.0 : sum_of(x, n, [middle](float v) { return std::fabs(v) > middle ? 1.0f : 0.0f; });
            const double next   = is_top ? 0.0 : sum_of(x, n, [middle](float v) { return std::fabs(v) > middle ? std::fabs(v) : 0.0f; });
            count[i]            = n_above - n_next;
            total[i]            = above - next;
            n_above             = n_next;
            above               = next;
        }
    }
};

// Solves the equations left * x = right, n of them, by elimination with pivots. Both are overwritten; the result lies in `right`.
void solve(double (*left)[ROW_PLANES_MAX], double * right, int n) {
    for (int i = 0; i < n; ++i) {
        int pivot = i;
        for (int r = i + 1; r < n; ++r) {
            pivot = std::fabs(left[r][i]) > std::fabs(left[pivot][i]) ? r : pivot;
        }
        std::swap_ranges(left[i], left[i] + n, left[pivot]);
        std::swap(right[i], right[pivot]);
        for (int r = i + 1; r < n; ++r) {
            const double factor = left[r][i] / left[i][i];
            for (int c = i; c < n; ++c) {
                left[r][c] -= factor * left[i][c];
            }
            right[r] -= factor * right[i];
        }
    }
    for (int i = n - 1; i >= 0; --i) {
        for (int c = i + 1; c < n; ++c) {
            right[i] -= left[i][c] * right[c];
        }
        right[i] /= left[i][i];
    }
}

// The scales that fit a row best with the signs that its numbers have now, rounded to BF16.
void fit_scales(const level_sums & sums, const upper_half & levels, size_t n, int n_planes, float * scales) {
    double left[ROW_PLANES_MAX][ROW_PLANES_MAX] = {};
    double right[ROW_PLANES_MAX]                = {};
    for (size_t i = 0; i < levels.n; ++i) {
        for (int p = 0; p < n_planes; ++p) {
            const double sign = (levels.codes[i] >> p & 1) != 0 ? 1.0 : -1.0;
            right[p] += sign * sums.total[i];
            for (int q = 0; q < n_planes; ++q) {
                left[p][q] += ((levels.codes[i] >> q & 1) != 0 ? sign : -sign) * sums.count[i];
            }
        }
    }
    for (int p = 0; p < n_planes; ++p) {
        left[p][p] += 1e-6 * (double) n; // Two planes with equal signs share their scale: so the equations can be solved.
    }
    solve(left, right, n_planes);
    for (int p = 0; p < n_planes; ++p) {
        scales[p] = ggml_bf16_to_fp32(ggml_fp32_to_bf16((float) right[p]));
    }
}

// Each number of a row takes the value that is nearest to its magnitude, with its sign.
void take_nearest(const float * x, size_t n, int n_planes, const upper_half & levels, float * values, uint8_t * codes) {
    const int32_t all_bits = (1 << n_planes) - 1;
    for (size_t begin = 0; begin < n; begin += N_CHUNK) {
        const size_t n_here = std::min(N_CHUNK, n - begin);
        float        value[N_CHUNK];
        int32_t      code[N_CHUNK];
        if (levels.n - 1 > N_COMPARED) {
            for (size_t i = 0; i < n_here; ++i) {
                const size_t place = levels.place(std::fabs(x[begin + i]));
                value[i]           = levels.values[place];
                code[i]            = levels.codes[place];
            }
        } else {
            std::fill_n(value, n_here, levels.values[0]);
            std::fill_n(code, n_here, (int32_t) levels.codes[0]);
            for (size_t l = 0; l + 1 < levels.n; ++l) {
                const float   middle = levels.middles[l], next = levels.values[l + 1];
                const int32_t next_code = levels.codes[l + 1];
                for (size_t i = 0; i < n_here; ++i) {
                    const bool is_above = std::fabs(x[begin + i]) > middle;
                    value[i]            = is_above ? next : value[i];
                    code[i]             = is_above ? next_code : code[i];
                }
            }
        }
        for (size_t i = 0; i < n_here; ++i) {
            const bool is_positive = x[begin + i] > 0.0f;
            values[begin + i]      = is_positive ? value[i] : -value[i];
            codes[begin + i]       = (uint8_t) (is_positive ? code[i] : code[i] ^ all_bits);
        }
    }
}

// The level of each of the rows that is nearest to its number, and the level's code.
void take_levels(const column_feedback & columns, const float * x, float * values, uint8_t * codes) {
    const size_t n = columns.n_rows, n_levels = columns.n_levels;
    if (n_levels == 2) { // those of one plane, of both signs
        for (size_t r = 0; r < n; ++r) {
            values[r] = std::copysign(columns.levels[n + r], x[r]);
            codes[r]  = columns.code_of[(std::signbit(x[r]) ? 0 : n) + r];
        }
        return;
    }
    if (n_levels - 1 <= N_COMPARED) {
        std::copy_n(columns.levels, n, values);
        std::fill_n(codes, n, (uint8_t) 0);
        for (size_t l = 0; l + 1 < n_levels; ++l) {
            const float * middles = columns.middles + l * n;
            const float * next    = columns.levels + (l + 1) * n;
            for (size_t r = 0; r < n; ++r) {
                values[r] = x[r] > middles[r] ? next[r] : values[r];
            }
            for (size_t r = 0; r < n; ++r) {
                codes[r] = (uint8_t) (codes[r] + (x[r] > middles[r]));
            }
        }
    } else {
        for (size_t r = 0; r < n; ++r) {
            size_t place = 0;
            for (size_t half = n_levels / 2; half > 0; half /= 2) {
                place += columns.middles[(place + half - 1) * n + r] < x[r] ? half : 0;
            }
            values[r] = columns.levels[place * n + r];
            codes[r]  = (uint8_t) place;
        }
    }
    for (size_t r = 0; r < n; ++r) { // So far they were the levels' numbers.
        codes[r] = columns.code_of[codes[r] * n + r];
    }
}

} // namespace

void code_rows(const row_coding & coding) {
    const size_t n        = coding.n;
    const int    n_planes = coding.n_planes;
    for (size_t r = 0; r < coding.n_rows; ++r) {
        const float * x      = coding.x + r * n;
        float *       scales = coding.scales + r * (size_t) n_planes;
        const double  rms    = std::sqrt(sum_of(x, n, [](float v) { return v * v; }) / (double) n);
        for (int q = 0; q < n_planes; ++q) {
            scales[q] = (float) (rms * (double) coding.gaussian_step / 2.0 * (double) (1 << q));
        }
        const upper_half begin(scales, n_planes);
        fit_scales(level_sums(x, n, begin), begin, n, n_planes, scales);
        take_nearest(x, n, n_planes, upper_half(scales, n_planes), coding.values + r * n, coding.codes + r * n);
    }
}

void feed_back(const column_feedback & columns) {
    const size_t n_rows = columns.n_rows;
    for (size_t j = 0; j < columns.n; ++j) {
        const float * x      = columns.x + j * n_rows;
        float *       values = columns.values + j * n_rows;
        float *       errors = columns.errors + j * n_rows;
        take_levels(columns, x, values, columns.codes + j * n_rows);
        for (size_t r = 0; r < n_rows; ++r) {
            errors[r] = x[r] - values[r];
        }
        for (size_t next = j + 1; next < columns.n; ++next) {
            const float share = columns.share[j * columns.n + next];
            float *     taken = columns.x + next * n_rows;
            for (size_t r = 0; r < n_rows; ++r) {
                taken[r] -= share * errors[r];
            }
        }
    }
}
