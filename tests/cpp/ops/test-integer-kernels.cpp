// test-integer-kernels.cpp: the kernels that multiply integers of 16 bits, of every instruction set that this CPU runs.

#include "support/check.h"
#include "support/random-entry.h"

#include "cpu/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

static std::string name_of(const char * what, const dqrelo_kernels * kernels, int64_t n) {
    return std::string(what) + "/" + kernels->name + "/n=" + std::to_string(n);
}

struct integers {
    std::vector<int16_t> q;
    float                step;
};

static integers quantize(const dqrelo_kernels * kernels, const std::vector<float> & v) {
    integers out = { std::vector<int16_t>((size_t) dqrelo_i16_values((int64_t) v.size()) + 1, 77), -1.0f };
    kernels->quantize_i16(v.data(), (int64_t) v.size(), out.q.data(), &out.step);
    return out;
}

// Every value is within half a step of v, the largest one is DQRELO_I16_MAX steps, and all sets of kernels agree on each bit.
static void test_quantize(const dqrelo_kernels * kernels, int64_t n) {
    check::begin(name_of("quantize_i16", kernels, n).c_str());
    std::mt19937 rng(91);
    for (float scale : { 1.0f, 1e-30f, 1e30f }) {
        std::vector<float> v     = random_row(n, rng);
        double             v_max = 0.0;
        for (float & value : v) {
            value *= scale;
            v_max = std::max(v_max, (double) std::fabs(value));
        }
        const integers got = quantize(kernels, v), want = quantize(&dqrelo_kernels_scalar, v);
        CHECK(got.step == want.step && got.q == want.q);
        CHECK(std::fabs(got.step * DQRELO_I16_MAX - v_max) <= 2 * U_F32 * v_max);
        bool close = true;
        for (int64_t j = 0; j < n; j++) {
            close = close && std::fabs(v[(size_t) j] - (double) got.step * got.q[(size_t) j]) <= got.step * (0.5 + 1e-3);
        }
        CHECK(close);
        for (int64_t j = n; j < dqrelo_i16_values(n); j++) {
            CHECK(got.q[(size_t) j] == 0);
        }
        CHECK(got.q.back() == 77);

        // In its place it gives the same.
        std::vector<float> memory = v;
        memory.resize((size_t) std::max(n, dqrelo_i16_values(n) / 2));
        float step;
        kernels->quantize_i16(memory.data(), n, memory.data(), &step);
        CHECK(step == got.step && memcmp(memory.data(), got.q.data(), (size_t) dqrelo_i16_values(n) * sizeof(int16_t)) == 0);
    }
}

static void test_quantize_edges(const dqrelo_kernels * kernels, int64_t n) {
    check::begin(name_of("quantize_i16/edges", kernels, n).c_str());
    const auto all_zero = [](const integers & i) { return std::all_of(i.q.begin(), i.q.end() - 1, [](int16_t q) { return q == 0; }); };
    for (float value : { 0.0f, -0.0f, 1e-39f, 1e-44f }) { // 1 / step would be infinite.
        const integers got = quantize(kernels, std::vector<float>((size_t) n, value));
        CHECK(got.step == 0.0f && all_zero(got));
    }
    for (float value : { NAN, INFINITY, -INFINITY }) {
        for (int64_t at : { (int64_t) 0, n / 2, n - 1 }) {
            std::vector<float> v((size_t) n, 1.0f);
            v[(size_t) at]     = value;
            const integers got = quantize(kernels, v);
            CHECK(std::isnan(got.step) && all_zero(got));
        }
    }
    const integers large = quantize(kernels, std::vector<float>((size_t) n, -std::numeric_limits<float>::max()));
    CHECK(std::isfinite(large.step) && large.q[0] == -DQRELO_I16_MAX && large.q[(size_t) (n - 1)] == -DQRELO_I16_MAX);
}

// The sums are those of the integers, and only their scaling is rounded; the largest ones fit. A row's result is the same, bit for bit,
// alone and among others.
static void test_products(const dqrelo_kernels * kernels, int64_t n, int n_t, int n_i, bool largest) {
    check::begin((name_of("products_i16", kernels, n) + "/rows=" + std::to_string(n_t) + "/outputs=" + std::to_string(n_i) +
                  (largest ? "/largest" : ""))
                     .c_str());
    std::mt19937  rng(92);
    const int64_t stride = dqrelo_i16_values(n) + 32;
    const auto random = [&] { return (int16_t) (largest ? -DQRELO_I16_MAX : (int) (rng() % (2 * DQRELO_I16_MAX + 1)) - DQRELO_I16_MAX); };
    std::vector<int16_t> a((size_t) (stride * n_i), 0), b((size_t) (stride * n_t), 0);
    std::vector<float>   a_step, b_step;
    for (int i = 0; i < n_i; i++) {
        std::generate_n(a.begin() + i * stride, n, random);
        a_step.push_back(0.5f + (float) i / 64.0f);
    }
    std::vector<const int16_t *>    rows;
    std::vector<std::vector<float>> got((size_t) n_t, std::vector<float>((size_t) n_i + 1, 7.0f));
    std::vector<float *>            out;
    for (int t = 0; t < n_t; t++) {
        std::generate_n(b.begin() + t * stride, n, random);
        b_step.push_back(0.25f + (float) t / 64.0f);
        rows.push_back(b.data() + t * stride);
        out.push_back(got[(size_t) t].data());
    }
    for (bool add : { true, false }) {
        kernels->products_i16(a.data(), stride, a_step.data(), n_i, rows.data(), b_step.data(), n_t, n, out.data(), add);
        bool close = true;
        for (int t = 0; t < n_t; t++) {
            for (int i = 0; i < n_i; i++) {
                int64_t sum = 0, magnitude = 0;
                for (int64_t j = 0; j < n; j++) {
                    const int64_t term = a[(size_t) (i * stride + j)] * b[(size_t) (t * stride + j)];
                    sum += term;
                    magnitude += std::abs(term);
                }
                const double step = (double) a_step[(size_t) i] * b_step[(size_t) t], so_far = add ? 7.0 : 0.0;
                close = close && std::fabs(got[(size_t) t][(size_t) i] - so_far - step * (double) sum) <=
                                     16 * U_F32 * (step * (double) magnitude + so_far);
            }
            CHECK(got[(size_t) t].back() == 7.0f);
        }
        CHECK(close);
    }
    std::vector<float> alone((size_t) n_i + 1, 7.0f);
    float *            alone_out = alone.data();
    kernels->products_i16(a.data(), stride, a_step.data(), n_i, &rows.back(), &b_step.back(), 1, n, &alone_out, false);
    CHECK(alone == got.back());
}

// A step of NaN makes the result NaN, in its row alone.
static void test_products_not_finite(const dqrelo_kernels * kernels) {
    check::begin(name_of("products_i16/not finite", kernels, 64).c_str());
    std::vector<int16_t>              a(64 * 5, 0), b(64 * 3, 0);
    std::vector<float>                a_step(5, 1.0f), b_step(3, 1.0f);
    std::vector<std::array<float, 5>> got(3);
    const int16_t *                   rows[3] = { &b[0], &b[64], &b[128] };
    float *                           out[3]  = { got[0].data(), got[1].data(), got[2].data() };
    a_step[4] = b_step[1] = NAN;
    kernels->products_i16(a.data(), 64, a_step.data(), 5, rows, b_step.data(), 3, 64, out, false);
    for (int t = 0; t < 3; t++) {
        for (int i = 0; i < 5; i++) {
            CHECK(t == 1 || i == 4 ? std::isnan(got[(size_t) t][(size_t) i]) : got[(size_t) t][(size_t) i] == 0.0f);
        }
    }
}

int main() {
    const dqrelo_kernels * list[8];
    for (int k = dqrelo_cpu_kernels_all(list, 8) - 1; k >= 0; k--) {
        const dqrelo_kernels * kernels = list[k];
        if (!kernels->products_i16) {
            printf("%s multiplies in F32\n", kernels->name);
            continue;
        }
        for (int64_t n : { 1, 7, 8, 31, 32, 33, 64, 576, 1000, 1024, 1040, 2040, 2048 }) {
            test_quantize(kernels, n);
            test_quantize_edges(kernels, n);
            for (int n_t : { 1, 2, 3, 5, 6, 7, 13, 48 }) {
                for (int n_i : { 1, 4, 13, 64 }) {
                    test_products(kernels, n, n_t, n_i, false);
                }
            }
            test_products(kernels, n, 7, 5, true);
        }
        test_products_not_finite(kernels);
    }
    return check::finish();
}
