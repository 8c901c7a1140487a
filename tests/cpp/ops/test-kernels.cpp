// test-kernels.cpp: every instruction set's kernels against the scalar ones, and one entry's matrix form against F64.
// Needs no ggml at link time, so it runs under sanitizers with the kernels compiled in.

#include "support/check.h"
#include "support/random-entry.h"

#include "cpu/entry.h"
#include "cpu/factor-types.h"
#include "cpu/kernels.h"

#include <algorithm>
#include <cstdarg>
#include <string>

static std::string format(const char * fmt, ...) __attribute__((format(printf, 1, 2)));
static std::string format(const char * fmt, ...) {
    char    text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return text;
}

static const int64_t   N_IN[]  = { 8, 72, 576, 1000, 4104 };
static const int       N_T[]   = { 1, 3, 17, 33 };
static const ggml_type TYPES[] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };

static const char * type_name(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32: return "f32";
        case GGML_TYPE_F16: return "f16";
        case GGML_TYPE_BF16: return "bf16";
        case GGML_TYPE_Q8_0: return "q8_0";
        default: return "q4_0";
    }
}

struct quantised {
    std::vector<int8_t>     q;
    std::vector<dqrelo_act> act;
};

static quantised quantise(const dqrelo_kernels * kernels, const std::vector<std::vector<float>> & x, const float * cscale) {
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
static std::vector<int32_t> integers(const dqrelo_kernels * kernels, const quantised & a, int t, int64_t n) {
    const int8_t *       q = a.q.data() + t * dqrelo_q_bytes(n);
    std::vector<int32_t> out;
    for (int64_t j = 0; j < (n + 63) / 64 * 64; j++) {
        const int64_t place = dqrelo_q_place(kernels->interleaves, j);
        out.push_back(256 * q[place] + q[place + 64]);
    }
    return out;
}

static bool same(const dqrelo_kernels * kernels, const quantised & a, const quantised & scalar, int64_t n) {
    bool equal = a.act.size() == scalar.act.size();
    for (size_t t = 0; equal && t < a.act.size(); t++) {
        equal = dqrelo_f32_bits(a.act[t].d) == dqrelo_f32_bits(scalar.act[t].d) && a.act[t].sum == scalar.act[t].sum &&
                integers(kernels, a, (int) t, n) == integers(&dqrelo_kernels_scalar, scalar, (int) t, n);
    }
    return equal;
}

static void test_quantize_is_nearest(const dqrelo_kernels * kernels) {
    for (int64_t n : N_IN) {
        check::begin(format("quantize_row/%s/n=%lld", kernels->name, (long long) n).c_str());
        std::mt19937               rng(7);
        const std::vector<float>   x    = random_row(n, rng, true);
        const quantised            a    = quantise(kernels, { x }, nullptr);
        const std::vector<int32_t> q    = integers(kernels, a, 0, n);
        bool                       near = true;
        int64_t                    sum  = 0;
        for (int64_t j = 0; j < n; j++) {
            // The error is half a step, and the roundings of 1/d, d and the product: 3 u of |x|.
            near = near && std::fabs(q[(size_t) j] * (double) a.act[0].d - x[(size_t) j]) <=
                               0.5 * a.act[0].d + 3 * U_F32 * std::fabs(x[(size_t) j]);
            sum += q[(size_t) j];
        }
        CHECK(near);
        CHECK(sum == a.act[0].sum);
        bool zero_tail = true;
        for (size_t j = (size_t) n; j < q.size(); j++) {
            zero_tail = zero_tail && q[j] == 0;
        }
        CHECK(zero_tail);
    }
}

static void test_quantize_odd_values(const dqrelo_kernels * kernels) {
    check::begin(format("quantize_row/%s/zero, tiny, infinite, nan", kernels->name).c_str());
    const std::vector<float> zero(72, 0.0f);
    std::vector<float>       tiny(72, 1e-36f), infinite(72, 1.0f), nan(72, 1.0f), largest(72, -3.4028235e38f);
    infinite[71]      = -INFINITY;
    nan[3]            = NAN;
    const quantised a = quantise(kernels, { zero, tiny, infinite, nan, largest }, nullptr);
    CHECK(a.act[0].d == 0.0f && a.act[0].sum == 0);
    CHECK(a.act[1].d == 0.0f && a.act[1].sum == 0);
    CHECK(std::isnan(a.act[2].d) && std::isnan(a.act[3].d));
    CHECK(a.act[4].sum == -32639 * 72 && std::isfinite(a.act[4].d));
}

static void test_quantize_equals_scalar(const dqrelo_kernels * kernels) {
    for (int64_t n : N_IN) {
        check::begin(format("quantize_row/%s equals scalar/n=%lld", kernels->name, (long long) n).c_str());
        std::mt19937                          rng(11);
        const std::vector<float>              c = random_row(n, rng);
        const std::vector<std::vector<float>> x = { random_row(n, rng), random_row(n, rng, true), std::vector<float>((size_t) n, 0.0f) };
        CHECK(same(kernels, quantise(kernels, x, nullptr), quantise(&dqrelo_kernels_scalar, x, nullptr), n));
        CHECK(same(kernels, quantise(kernels, x, c.data()), quantise(&dqrelo_kernels_scalar, x, c.data()), n));
    }
}

// Returns n_i rows of signs, the first one all minus ones. There is one byte before, so that no row is aligned, and none after, so that a
// sanitizer sees a read past the end.
static bytes random_signs(int64_t n, int n_i, std::mt19937 & rng) {
    bytes sign(1 + (size_t) (n / 8 * n_i));
    for (uint8_t & b : sign) {
        b = (uint8_t) rng();
    }
    memset(sign.data() + 1, 0, (size_t) (n / 8));
    return sign;
}

static int64_t sum_of_signs(const bytes & sign, int64_t i, const std::vector<int32_t> & q, int64_t n) {
    int64_t sum = 0;
    for (int64_t j = 0; j < n; j++) {
        sum += (sign[(size_t) (1 + i * (n / 8) + j / 8)] >> (j % 8)) & 1 ? q[(size_t) j] : -q[(size_t) j];
    }
    return sum;
}

// Returns a row in which a share of all runs of four columns has values of almost the largest magnitude, and the others have small ones.
static std::vector<float> row_of_runs(int64_t n, std::mt19937 & rng, float share) {
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<float>                    x((size_t) n);
    bool                                  large = false;
    for (int64_t j = 0; j < n; j++) {
        large                 = j % 4 == 0 ? uniform(rng) < share : large;
        const float magnitude = large ? 0.9f + 0.1f * uniform(rng) : 0.1f * uniform(rng);
        x[(size_t) j]         = uniform(rng) < 0.5f ? -magnitude : magnitude;
    }
    return x;
}

struct alignas(64) cache_line {
    uint8_t bytes[64];
};

// Makes tables of a row, where the kernels have any, and returns them: no more lines of memory than they ask for.
static std::vector<cache_line> make_tables(const dqrelo_kernels * kernels, const int8_t * q, int64_t n, dqrelo_act * act) {
    std::vector<cache_line> lines;
    if (kernels->make_tables) {
        lines.resize((size_t) (kernels->tables_bytes(n) + 63) / 64);
        kernels->make_tables(q, n, lines.data(), act);
        CHECK(act->tables == nullptr || act->tables == lines.data());
    }
    return lines;
}

// Multiplies tiles of signs with n_t rows of q. The products of one row must be the same with tables that were made before.
static void multiply_signs(const dqrelo_kernels * kernels, const std::vector<dqrelo_sign_tile> & tiles, const quantised & a, int n_t,
                           int64_t n, int64_t ld, dqrelo_ahead * ahead) {
    kernels->sign_dots(tiles.data(), (int) tiles.size(), a.q.data(), dqrelo_q_bytes(n), a.act.data(), n_t, n, ld, ahead);
    if (n_t > 1) {
        return;
    }
    dqrelo_act                        act    = a.act[0];
    const auto                        memory = make_tables(kernels, a.q.data(), n, &act);
    std::vector<std::vector<int32_t>> again;
    std::vector<dqrelo_sign_tile>     other = tiles;
    for (dqrelo_sign_tile & tile : other) {
        again.emplace_back((size_t) tile.n_i + 1, 7654321);
        tile.out = again.back().data();
    }
    dqrelo_ahead nothing = {};
    kernels->sign_dots(other.data(), (int) other.size(), a.q.data(), dqrelo_q_bytes(n), &act, 1, n, ld, &nothing);
    for (size_t k = 0; k < tiles.size(); k++) {
        CHECK(std::equal(tiles[k].out, tiles[k].out + tiles[k].n_i, again[k].begin()) && again[k].back() == 7654321);
    }
}

// Multiplies a tile of signs for each number of outputs in n_i; `large` is the share of runs with large values, or negative for rows
// that are normally distributed.
static void test_sign_dots_exact(const dqrelo_kernels * kernels, int64_t n, int n_t, const std::vector<int> & n_i, float large = -1.0f) {
    check::begin(format("sign_dots/%s/n=%lld/rows=%d/outputs=%d, %d tiles, large %g", kernels->name, (long long) n, n_t, n_i[0],
                        (int) n_i.size(), (double) large)
                     .c_str());
    std::mt19937                    rng(13);
    std::vector<std::vector<float>> x;
    for (int t = 0; t < n_t; t++) {
        x.push_back(large < 0.0f ? random_row(n, rng, t % 2 == 1) : row_of_runs(n, rng, large));
    }
    const quantised a = quantise(kernels, x, nullptr);

    const int                         ld = *std::max_element(n_i.begin(), n_i.end()) + 3;
    std::vector<bytes>                sign;
    std::vector<std::vector<int32_t>> got(n_i.size(), std::vector<int32_t>((size_t) (ld * n_t), 1234567));
    std::vector<dqrelo_sign_tile>     tiles;
    for (size_t k = 0; k < n_i.size(); k++) {
        sign.push_back(random_signs(n, n_i[k], rng));
        tiles.push_back({ sign[k].data() + 1, n_i[k], got[k].data() });
    }
    const bytes     after(3000);
    const uintptr_t begin = (uintptr_t) after.data(), end = begin + after.size();
    dqrelo_ahead    ahead = { begin, end };
    multiply_signs(kernels, tiles, a, n_t, n, ld, &ahead);
    bool exact  = true;
    bool inside = true;
    for (size_t k = 0; k < n_i.size(); k++) {
        for (int t = 0; t < n_t; t++) {
            const std::vector<int32_t> q = integers(kernels, a, t, n);
            for (int i = 0; i < ld; i++) {
                const int32_t value = got[k][(size_t) (t * ld + i)];
                exact               = exact && (i >= n_i[k] || value == sum_of_signs(sign[k], i, q, n));
                inside              = inside && (i < n_i[k] || value == 1234567);
            }
        }
    }
    CHECK(exact);
    CHECK(inside);
    CHECK(ahead.end == end && ahead.next >= begin && ahead.next < end + 64);
}

// Long rows of equal values and signs: the largest sums in every lane. 65536 is the longest row with the full range of q.
static void test_sign_dots_long_row(const dqrelo_kernels * kernels, int64_t n, float value) {
    check::begin(format("sign_dots/%s/n=%lld, all %g", kernels->name, (long long) n, (double) value).c_str());
    const quantised        a = quantise(kernels, { std::vector<float>((size_t) n, value) }, nullptr);
    const bytes            sign((size_t) (n / 8), 0xff);
    int32_t                got     = 0;
    dqrelo_ahead           nothing = {};
    const dqrelo_sign_tile tile    = { sign.data(), 1, &got };
    multiply_signs(kernels, { tile }, a, 1, n, 1, &nothing);
    CHECK(got == (value < 0.0f ? -dqrelo_q_max(n) : dqrelo_q_max(n)) * n);
    CHECK(std::fabs(got * (double) a.act[0].d / ((double) value * (double) n) - 1.0) < 1e-6);
}

// A row so long that its largest lower bytes, all of one sign, add up to more than 2^24 in a sixteenth of it.
static void test_sign_dots_longest_row(const dqrelo_kernels * kernels) {
    const int64_t n = 1 << 22;
    for (const float lower : { 127.0f, -128.0f }) {
        check::begin(format("sign_dots/%s/n=%lld, all %g", kernels->name, (long long) n, (double) lower).c_str());
        std::vector<float> x((size_t) n, lower);
        x[0]              = (float) dqrelo_q_max(n);
        const quantised a = quantise(kernels, { x, x, x }, nullptr);
        const bytes     sign((size_t) (n / 8), 0xff);
        for (const int n_t : { 1, 3 }) {
            std::vector<int32_t>   got(3);
            dqrelo_ahead           nothing = {};
            const dqrelo_sign_tile tile    = { sign.data(), 1, got.data() };
            multiply_signs(kernels, { tile }, a, n_t, n, 1, &nothing);
            const int64_t want = dqrelo_q_max(n) + (n - 1) * (int64_t) lower;
            CHECK(got[0] == want && got[(size_t) n_t - 1] == want);
        }
    }
}

// Rows whose neighbouring columns have the sum 65215, 0xfebf: in tables of partial sums whose digits have 6, 5 and 5 bits, the lowest
// digit is as large as it can be, 63, and the highest one too. With the other sign they are as large where the sign bits are not set.
static void test_sign_dots_largest_digits(const dqrelo_kernels * kernels) {
    const int64_t n = 8192 + 520;
    for (const float sign : { 1.0f, -1.0f }) {
        check::begin(format("sign_dots/%s/largest digits, sign %g", kernels->name, (double) sign).c_str());
        std::vector<float> x((size_t) n);
        for (int64_t j = 0; j < n; j++) {
            x[(size_t) j] = sign * (j % 2 ? 32576.0f : 32639.0f);
        }
        const quantised      a = quantise(kernels, { x, x, x, x, x, x, x, x }, nullptr);
        const bytes          signs((size_t) (n / 8), sign > 0.0f ? 0xff : 0);
        std::vector<int32_t> got(8);
        dqrelo_ahead         nothing = {};
        for (const int n_t : { 1, 8 }) {
            const dqrelo_sign_tile tile = { signs.data(), 1, got.data() };
            multiply_signs(kernels, { tile }, a, n_t, n, 1, &nothing);
            bool exact = true;
            for (int t = 0; t < n_t; t++) {
                exact = exact && got[(size_t) t] == n / 2 * 65215;
            }
            CHECK(exact);
        }
    }
}

// The same of four neighbouring columns whose sum has 16 bits, all of them set, or the 17th alone. The last column has the largest value,
// so that q is x.
static void test_sign_dots_largest_four(const dqrelo_kernels * kernels) {
    const int64_t n   = 1032;
    const int     n_i = 600, n_t = 13;
    for (const float last : { 16383.0f, 16384.0f }) {
        for (const float sign : { 1.0f, -1.0f }) {
            check::begin(
                format("sign_dots/%s/largest sums of four columns, sign %g, last %g", kernels->name, (double) sign, (double) last).c_str());
            std::vector<float> x((size_t) n, 0.0f);
            for (int64_t j = 0; j < n - 8; j++) {
                x[(size_t) j] = sign * (j % 4 < 3 ? 16384.0f : last);
            }
            x[(size_t) n - 1]           = sign * 32639.0f;
            const int64_t          want = (n - 8) / 4 * (3 * 16384 + (int64_t) last) + 32639;
            const quantised        a    = quantise(kernels, std::vector<std::vector<float>>((size_t) n_t, x), nullptr);
            const bytes            signs((size_t) (n_i * (n / 8)), sign > 0.0f ? 0xff : 0);
            std::vector<int32_t>   got((size_t) (n_t * n_i));
            dqrelo_ahead           nothing = {};
            const dqrelo_sign_tile tile    = { signs.data(), n_i, got.data() };
            multiply_signs(kernels, { tile }, a, n_t, n, n_i, &nothing);
            CHECK(std::all_of(got.begin(), got.end(), [&](int32_t value) { return value == want; }));
            multiply_signs(kernels, { tile }, a, 1, n, n_i, &nothing);
            CHECK(std::all_of(got.begin(), got.end(), [&](int32_t value) { return value == want; }));
        }
    }
}

static void test_to_float(const dqrelo_kernels * kernels, ggml_type type) {
    check::begin(format("to_float/%s/%s", kernels->name, type_name(type)).c_str());
    for (int64_t n : { (int64_t) 32, (int64_t) 96, (int64_t) 39 }) {
        if (n % 32 != 0 && (type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0)) {
            continue;
        }
        std::mt19937        rng(17);
        const random_matrix m = make_matrix(type, n, rng);
        std::vector<float>  got((size_t) n + 1, 55.0f);
        kernels->to_float(type, m.data.data(), n, got.data());
        bool exact = got[(size_t) n] == 55.0f;
        for (int64_t j = 0; j < n; j++) {
            exact = exact && got[(size_t) j] == m.value[(size_t) j]; // Products of 11 by 8 bits are exact in F32.
        }
        CHECK(exact);
    }
}

// Every F16 there is, against the definition in IEEE 754.
static void test_to_float_all_f16(const dqrelo_kernels * kernels) {
    check::begin(format("to_float/%s/every f16", kernels->name).c_str());
    std::vector<uint16_t> h(65536);
    std::vector<float>    got(65536);
    for (size_t i = 0; i < h.size(); i++) {
        h[i] = (uint16_t) i;
    }
    kernels->to_float(GGML_TYPE_F16, h.data(), 65536, got.data());
    bool exact = true;
    for (uint32_t i = 0; i < 65536; i++) {
        const int    exponent = (i >> 10) & 31;
        const double sign     = i & 0x8000 ? -1.0 : 1.0;
        const int    mantissa = i & 1023;
        if (exponent == 31) {
            exact = exact && (mantissa ? std::isnan(got[i]) : got[i] == sign * INFINITY);
        } else {
            exact = exact && got[i] == sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
        }
    }
    CHECK(exact);
}

static void test_dots(const dqrelo_kernels * kernels, ggml_type type, int64_t n, int n_t) {
    if (n % 32 != 0 && (type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0)) {
        return;
    }
    check::begin(format("dots/%s/%s/n=%lld/rows=%d", kernels->name, type_name(type), (long long) n, n_t).c_str());
    const int                       n_i = 21;
    std::mt19937                    rng(19);
    const random_matrix             a = make_matrix(type, n * n_i, rng);
    std::vector<std::vector<float>> x;
    std::vector<const float *>      b;
    for (int t = 0; t < n_t; t++) {
        x.push_back(random_row(n, rng));
    }
    for (const std::vector<float> & row : x) {
        b.push_back(row.data());
    }
    const int          ld = n_i + 2;
    std::vector<float> got((size_t) (ld * n_t), 99.0f), alone((size_t) n_i);
    const bytes        after(3000);
    const uintptr_t    begin = (uintptr_t) after.data(), end = begin + after.size();
    dqrelo_ahead       ahead = { begin, end }, nothing = {};
    kernels->dots(type, a.data.data(), dqrelo_type_bytes(type, n), n_i, b.data(), n_t, n, got.data(), ld, &ahead);
    // It may ask for less where n_t is large, and for no more than a step behind the end.
    CHECK(ahead.end == end && ahead.next >= begin && ahead.next < end + 8 * 128);
    bool close  = true;
    bool inside = true;
    for (int t = 0; t < n_t; t++) {
        for (int i = 0; i < n_i; i++) {
            bounded sum;
            for (int64_t j = 0; j < n; j++) {
                sum.add(a.value[(size_t) (i * n + j)] * x[(size_t) t][(size_t) j]);
            }
            close = close && std::fabs(got[(size_t) (t * ld + i)] - sum.value) <= ((double) n + 2.0) * U_F32 * sum.magnitude;
        }
        inside = inside && got[(size_t) (t * ld + n_i)] == 99.0f;
    }
    CHECK(close);
    CHECK(inside);
    // A row's result is the same, bit for bit, alone and among others, and whatever piece of a it is computed with.
    const int t = n_t - 1;
    kernels->dots(type, a.data.data(), dqrelo_type_bytes(type, n), n_i, &b[(size_t) t], 1, n, alone.data(), n_i, &nothing);
    CHECK(nothing.next == 0);
    CHECK(memcmp(alone.data(), &got[(size_t) (t * ld)], (size_t) n_i * sizeof(float)) == 0);
    kernels->dots(type, a.data.data() + 5 * dqrelo_type_bytes(type, n), dqrelo_type_bytes(type, n), n_i - 5, b.data(), n_t, n, got.data(),
                  ld, &nothing);
    CHECK(memcmp(alone.data() + 5, &got[(size_t) (t * ld)], (size_t) (n_i - 5) * sizeof(float)) == 0);
}

static void test_fold_signs(const dqrelo_kernels * kernels, int64_t n) {
    check::begin(format("fold_signs/%s/n=%lld", kernels->name, (long long) n).c_str());
    std::mt19937             rng(37);
    const std::vector<float> w = random_row(n, rng), c = random_row(n, rng);
    bytes                    sign((size_t) (n / 8)); // Of exactly this length, so that a sanitizer sees a read past the end.
    for (uint8_t & b : sign) {
        b = (uint8_t) rng();
    }
    for (const float * cscale : { (const float *) nullptr, c.data() }) {
        std::vector<float> got = w, want = w;
        kernels->fold_signs(got.data(), sign.data(), 0.3f, cscale, n);
        dqrelo_kernels_scalar.fold_signs(want.data(), sign.data(), 0.3f, cscale, n);
        bool exact = true;
        for (int64_t j = 0; j < n; j++) {
            const float value = cscale ? 0.3f * c[(size_t) j] : 0.3f;
            exact             = exact && want[(size_t) j] == w[(size_t) j] + ((sign[(size_t) (j / 8)] >> (j % 8)) & 1 ? value : -value);
        }
        CHECK(exact);
        CHECK(got == want);
    }
}

static void test_products(const dqrelo_kernels * kernels, bool of_tile, int64_t n, int n_t, int n_i) {
    const auto products = of_tile ? kernels->tile_products : kernels->products;
    check::begin(
        format("%s/%s/n=%lld/rows=%d/outputs=%d", of_tile ? "tile_products" : "products", kernels->name, (long long) n, n_t, n_i).c_str());
    std::mt19937                    rng(41);
    const int64_t                   stride = n + 3;
    const std::vector<float>        a      = random_row(stride * n_i - 3, rng);
    std::vector<std::vector<float>> x, got;
    std::vector<const float *>      b;
    std::vector<float *>            out;
    for (int t = 0; t < n_t; t++) {
        x.push_back(random_row(n, rng));
        got.emplace_back((size_t) n_i, 7.0f);
    }
    for (int t = 0; t < n_t; t++) {
        b.push_back(x[(size_t) t].data());
        out.push_back(got[(size_t) t].data());
    }
    for (float first : { 0.0f, 7.0f }) {
        products(a.data(), stride, n_i, b.data(), n_t, n, out.data(), first != 0.0f);
        bool close = true;
        for (int t = 0; t < n_t; t++) {
            for (int i = 0; i < n_i; i++) {
                bounded sum;
                for (int64_t j = 0; j < n; j++) {
                    sum.add((double) a[(size_t) (i * stride + j)] * x[(size_t) t][(size_t) j]);
                }
                const double so_far         = first != 0.0f ? 7.0 : 0.0;
                const double tolerance      = ((double) n + 2.0) * U_F32 * (sum.magnitude + so_far);
                close                       = close && std::fabs(got[(size_t) t][(size_t) i] - (so_far + sum.value)) <= tolerance;
                got[(size_t) t][(size_t) i] = 7.0f;
            }
        }
        CHECK(close);
    }
    // A row's result is the same, bit for bit, alone and among others.
    products(a.data(), stride, n_i, b.data(), n_t, n, out.data(), false);
    std::vector<float> alone((size_t) n_i);
    float *            alone_out = alone.data();
    products(a.data(), stride, n_i, &b.back(), 1, n, &alone_out, false);
    CHECK(alone == got.back());
}

// Bits that are random, all set, and not set at all, and of exactly this length, so that a sanitizer sees a read past the end.
static void test_expand(const dqrelo_kernels * kernels, int64_t n, int kind) {
    check::begin(format("expand/%s/n=%lld/kind=%d", kernels->name, (long long) n, kind).c_str());
    std::mt19937       rng(43);
    bytes              bits((size_t) (n / 8));
    std::vector<float> want((size_t) n, 0.0f), values, got((size_t) n + 1, 55.0f);
    for (uint8_t & b : bits) {
        b = kind == 0 ? (uint8_t) rng() : kind == 1 ? 0xff : 0;
    }
    for (int64_t j = 0; j < n; j++) {
        if ((bits[(size_t) (j / 8)] >> (j % 8)) & 1) {
            values.push_back((float) j + 0.5f);
            want[(size_t) j] = values.back();
        }
    }
    CHECK(kernels->count_bits(bits.data(), n) == (int64_t) values.size());
    values.resize(values.size() + DQRELO_EXPAND_BEHIND, NAN);
    kernels->expand(values.data(), bits.data(), n, got.data());
    CHECK(got[(size_t) n] == 55.0f);
    got.pop_back();
    CHECK(got == want);
}

// Takes rows through both halves of an entry. `early`: as a single row is taken by kernels that multiply signs beside V, with tables that
// are made once.
static std::vector<std::vector<float>> run_entry(const dqrelo_kernels * kernels, const dqrelo_entry & e,
                                                 const std::vector<std::vector<float>> & x, const std::vector<std::vector<float>> & y,
                                                 float s, int nth, bool early = false) {
    const int64_t                   n_t = (int64_t) x.size();
    std::vector<std::vector<float>> out(x.size(), std::vector<float>((size_t) e.n_out, 99.0f));
    std::vector<dqrelo_row>         rows;
    for (size_t t = 0; t < x.size(); t++) {
        rows.push_back({ x[t].data(), y[t].data(), out[t].data(), 0, s, 0 });
    }
    std::vector<int8_t>         q((size_t) (n_t * dqrelo_q_bytes(e.n_in)));
    std::vector<dqrelo_act>     act(x.size());
    std::vector<float>          work((size_t) (n_t * (e.rank + 3)));
    std::vector<dqrelo_scratch> scratch((size_t) nth);
    std::vector<int64_t>        n_early((size_t) nth);
    const int64_t               n_ranks   = e.plane_ranks[0];
    const int64_t               zq_stride = dqrelo_q_bytes(e.n_codes) + 128;
    std::vector<float>          bx((size_t) (n_t * (n_ranks + 5))), z((size_t) e.n_codes);
    std::vector<int8_t>         zq((size_t) (n_t * zq_stride));
    std::vector<dqrelo_act>     zact(x.size());
    const dqrelo_group          g = { e,          rows.data(), n_t,         q.data(),  act.data(), work.data(),
                                      e.rank + 3, bx.data(),   n_ranks + 5, zq.data(), zq_stride,  zact.data() };
    for (size_t t = 0; t < x.size() && dqrelo_entry_has_signs(&e); t++) {
        kernels->quantize_row(x[t].data(), e.cscale, e.n_in, q.data() + (int64_t) t * dqrelo_q_bytes(e.n_in), &act[t]);
    }
    const auto tables = early && dqrelo_entry_has_signs(&e) ? make_tables(kernels, q.data(), e.n_in, &act[0]) : std::vector<cache_line>();
    for (int ith = 0; ith < nth && e.rank > 0; ith++) {
        const int64_t r0 = e.rank * ith / nth, r1 = e.rank * (ith + 1) / nth;
        const int64_t i0 = e.n_out * ith / nth, i1 = e.n_out * (ith + 1) / nth;
        n_early[(size_t) ith] = early ? dqrelo_early_features(&g, i1 - i0) : 0;
        if (n_early[(size_t) ith] > 0) {
            dqrelo_matmul_factor_early(kernels, &g, r0, r1, i0, n_early[(size_t) ith], &scratch[(size_t) ith]);
        } else {
            dqrelo_matmul_factor(kernels, &g, r0, r1, dqrelo_apply_begin(&e, 0, e.n_out));
        }
    }
    for (int ith = 0; ith < nth && e.n_codes > 0; ith++) {
        dqrelo_matmul_codes(kernels, &g, n_ranks * ith / nth, n_ranks * (ith + 1) / nth, scratch.data());
    }
    for (int64_t t = 0; t < n_t && e.n_codes > 0; t++) {
        dqrelo_matmul_quantize(kernels, &g, t, z.data());
    }
    const auto ztables = early && e.n_codes > 0 ? make_tables(kernels, zq.data(), e.n_codes, &zact[0]) : std::vector<cache_line>();
    for (int ith = 0; ith < nth; ith++) {
        dqrelo_matmul_apply(kernels, &g, e.n_out * ith / nth, e.n_out * (ith + 1) / nth, n_early[(size_t) ith], {}, &scratch[(size_t) ith]);
    }
    return out;
}

// What is asked for before a product lies in the matrix, and is not more than the products leave to it.
static void test_begins() {
    check::begin("begins");
    const bytes  data(1 << 20);
    dqrelo_entry e = {};
    e.n_in         = 2048;
    e.n_out        = 4096;
    e.rank         = 16;
    e.v            = data.data();
    e.u            = data.data() + 16 * 2048 * 2;
    e.type_v = e.type_u       = GGML_TYPE_F16;
    const dqrelo_ahead v      = dqrelo_factor_begin(&e, 8, 16);
    const dqrelo_ahead v_last = dqrelo_factor_begin(&e, 15, 16);
    CHECK(v.next == (uintptr_t) e.v + 8 * 4096 && v.end == v.next + 16384);
    CHECK(v_last.end == (uintptr_t) e.u && v_last.end - v_last.next == 4096);
    const dqrelo_ahead u = dqrelo_apply_begin(&e, 16, 32);
    CHECK(u.next == (uintptr_t) e.u + 16 * 32 && u.end == (uintptr_t) e.u + 32 * 32);
    e.n_planes               = 1;
    e.sign[0]                = data.data();
    const dqrelo_ahead signs = dqrelo_apply_begin(&e, 64, 4096);
    CHECK(signs.next == (uintptr_t) data.data() + 64 * 256 && signs.end == signs.next + 16384);
    const dqrelo_entry nothing = {};
    CHECK(dqrelo_apply_begin(&nothing, 0, 16).next == dqrelo_apply_begin(&nothing, 0, 16).end);
}

static void test_entry(const dqrelo_kernels * kernels, const entry_options & o, int n_t, const char * what) {
    check::begin(format("matmul/%s/n_in=%lld/n_out=%lld/rows=%d/planes=%d/rank=%d/u=%s/v=%s%s", kernels->name, (long long) o.n_in,
                        (long long) o.n_out, n_t, o.dense ? 0 : o.n_planes, o.rank, type_name(o.type_u), type_name(o.type_v), what)
                     .c_str());
    const random_entry              r(o, 23);
    const float                     s = 0.75f;
    std::mt19937                    rng(29);
    std::vector<std::vector<float>> x, y;
    for (int t = 0; t < n_t; t++) {
        x.push_back(random_row(o.n_in, rng, t % 3 == 2));
        y.push_back(random_row(o.n_out, rng));
    }
    const auto got   = run_entry(kernels, r.e, x, y, s, 1);
    bool       close = true;
    for (int t = 0; t < n_t; t++) {
        double v_max = 0.0;
        for (int64_t j = 0; j < o.n_in; j++) {
            v_max = std::max(v_max, std::fabs(r.cscale_at(j) * x[(size_t) t][(size_t) j]));
        }
        const expected_delta want = expect_matmul(r, x[(size_t) t].data(), v_max / dqrelo_q_max(o.n_in));
        for (int64_t i = 0; i < o.n_out; i++) {
            const double y_i       = y[(size_t) t][(size_t) i];
            const double tolerance = s * want.tolerance[(size_t) i] + 2 * U_F32 * (std::fabs(y_i) + s * std::fabs(want.value[(size_t) i]));
            close                  = close && std::fabs(got[(size_t) t][(size_t) i] - (y_i + s * want.value[(size_t) i])) <= tolerance;
        }
    }
    CHECK(close);
    CHECK(run_entry(kernels, r.e, x, y, s, 3) == got);
    CHECK(run_entry(kernels, r.e, { x.back() }, { y.back() }, s, 1)[0] == got.back());
    CHECK(run_entry(kernels, r.e, { x.back() }, { y.back() }, s, 1, true)[0] == got.back());
    CHECK(run_entry(kernels, r.e, { x.back() }, { y.back() }, s, 3, true)[0] == got.back());
}

// How many features are multiplied beside V: their part of all is V's part of the factors, in steps of 64.
static void test_early_features() {
    check::begin("early features");
    dqrelo_group g = {};
    g.n_rows       = 1;
    g.e.n_in       = 8192;
    g.e.n_out      = 2048;
    g.e.rank       = 64;
    g.e.n_planes   = 1;
    g.e.type_u = g.e.type_v = GGML_TYPE_F16;
    CHECK(dqrelo_early_features(&g, 2048) == 2048 * 4 / 5 / 64 * 64);
    CHECK(dqrelo_early_features(&g, 1024) == 768);
    CHECK(dqrelo_early_features(&g, 128) == 64);
    CHECK(dqrelo_early_features(&g, 64) == 0);
    CHECK(dqrelo_early_features(&g, 0) == 0);
    CHECK(dqrelo_early_features(&g, 4 * DQRELO_TILE) > 0);
    CHECK(dqrelo_early_features(&g, 4 * DQRELO_TILE + 64) == 0); // There is no room for the sums.
    g.e.n_planes = 2;
    CHECK(dqrelo_early_features(&g, 4 * DQRELO_TILE) == 0);
    CHECK(dqrelo_early_features(&g, 2 * DQRELO_TILE) > 0);
    g.n_rows = 2;
    CHECK(dqrelo_early_features(&g, 2048) == 0);
    g.n_rows    = 1;
    g.e.n_codes = 8; // Sums of codes take the same memory.
    CHECK(dqrelo_early_features(&g, 2048) == 0);
    g.e.n_codes = 0;
    g.e.rank    = 0;
    CHECK(dqrelo_early_features(&g, 2048) == 0);
}

// Codes of one plane and of eight, in tiles that are full and not, and more of them than columns.
static const std::vector<int> SIGN_FACTORS[] = {
    { 8 }, { 64 }, { 70, 66 }, { 20, 7, 4, 3, 2, 2, 1, 1 }, { 130, 129, 128, 5 }, { 197, 197, 150, 120, 64 },
};

static void test_entries(const dqrelo_kernels * kernels) {
    for (int64_t n : N_IN) {
        for (int n_t : N_T) {
            entry_options o;
            o.n_in = n;
            o.rank = n < 64 ? 1 : 7;
            test_entry(kernels, o, n_t, "");
        }
    }
    for (int rank : { 0, 1, 7, 64, 99, 512 }) {
        for (int n_planes = 1; n_planes <= 4; n_planes++) {
            entry_options o;
            o.n_in     = 576;
            o.n_out    = 517;
            o.rank     = rank;
            o.n_planes = n_planes;
            test_entry(kernels, o, 3, "");
            o.n_out         = 130;
            o.scale_per_row = true;
            o.cscale        = true;
            test_entry(kernels, o, 5, "/scale per row/cscale");
        }
    }
    for (ggml_type type_u : TYPES) {
        for (ggml_type type_v : TYPES) {
            entry_options o;
            o.n_in   = 96;
            o.n_out  = 70;
            o.rank   = 64;
            o.type_u = type_u;
            o.type_v = type_v;
            test_entry(kernels, o, 4, "");
        }
    }
    for (const std::vector<int> & ranks : SIGN_FACTORS) {
        entry_options o;
        o.n_in        = 576;
        o.n_out       = 197;
        o.n_planes    = 0;
        o.plane_ranks = ranks;
        test_entry(kernels, o, 1, "/sign factors");
        test_entry(kernels, o, 53, "/sign factors");
        o.n_in     = 1000;
        o.rank     = 7;
        o.n_planes = 2;
        o.cscale   = true;
        test_entry(kernels, o, 3, "/cscale/sign factors");
    }
    for (int n_t : N_T) {
        for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_I8 }) {
            entry_options o;
            o.n_in         = 1320;
            o.n_out        = 77;
            o.type_entries = type;
            o.sparse       = sparsity::MASK;
            test_entry(kernels, o, n_t, "/sparse by mask");
            o.sparse = sparsity::LISTS;
            test_entry(kernels, o, n_t, "/sparse by lists");
        }
    }
    entry_options o;
    o.zero_scale = true;
    o.rank       = 7;
    test_entry(kernels, o, 2, "/scale=0");
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16 }) {
        o.dense      = true;
        o.rank       = 0;
        o.n_in       = 37;
        o.type_dense = type;
        test_entry(kernels, o, 3, type == GGML_TYPE_F32 ? "/dense f32" : "/dense f16");
    }
}

static void test_isa(const dqrelo_kernels * kernels) {
    test_quantize_is_nearest(kernels);
    test_quantize_odd_values(kernels);
    test_quantize_equals_scalar(kernels);
    for (int64_t n : N_IN) {
        for (int n_t : N_T) {
            for (int n_i : { 1, 13, 64, 77 }) {
                test_sign_dots_exact(kernels, n, n_t, { n_i });
            }
        }
    }
    for (int n_t : { 1, 2, 8 }) { // more outputs than a tile of any kernel
        test_sign_dots_exact(kernels, 1000, n_t, { 300 });
        for (int64_t n : { 112, 4096, 9000 }) { // several tiles, in one segment of columns and in two
            test_sign_dots_exact(kernels, n, n_t, { 130, 64, 1, 200 });
            test_sign_dots_exact(kernels, n, n_t, { 60, 1, 40 });
        }
    }
    for (int64_t n : { 8, 112, 384, 1000, 4104 }) { // enough outputs for tables of four columns, with sums of more than 16 bits
        for (int n_t : { 1, 2, 3, 5 }) {
            for (float large : { -1.0f, 0.0f, 0.02f, 0.3f, 1.0f }) {
                test_sign_dots_exact(kernels, n, n_t, { 128 }, large);
                test_sign_dots_exact(kernels, n, n_t, { 1, 47, 97 }, large);
            }
        }
    }
    for (int64_t n : { 8192, 20480, 20488 }) { // as many columns as there is room for tables of, and more
        test_sign_dots_exact(kernels, n, 3, { 130 }, 0.02f);
    }
    for (int64_t n : { 32768, 32776 }) { // as many columns as there is room for a row of q of, and more
        test_sign_dots_exact(kernels, n, 1, { 5, 2 }, 0.02f);
    }
    for (int64_t n : { 8, 384, 1000 }) { // many rows
        test_sign_dots_exact(kernels, n, 13, { 1, 300, 257 });
    }
    test_sign_dots_longest_row(kernels);
    test_sign_dots_largest_digits(kernels);
    test_sign_dots_largest_four(kernels);
    for (int64_t n : { 4104, 65536, 262144 }) {
        test_sign_dots_long_row(kernels, n, 3.0f);
        test_sign_dots_long_row(kernels, n, -3.0f);
    }
    for (int64_t n : { 1, 7, 64, 576, 2500 }) {
        for (int n_t : N_T) {
            for (int n_i : { 1, 13, 64 }) {
                test_products(kernels, false, n, n_t, n_i);
                test_products(kernels, true, n, n_t, n_i);
            }
        }
    }
    for (int64_t n : N_IN) {
        test_fold_signs(kernels, n);
        for (int kind : { 0, 1, 2 }) {
            test_expand(kernels, n, kind);
        }
    }
    for (ggml_type type : TYPES) {
        test_to_float(kernels, type);
        for (int64_t n : { 1, 7, 64, 102, 512, 576, 4104 }) {
            for (int n_t : N_T) {
                test_dots(kernels, type, n, n_t);
            }
        }
    }
    test_to_float_all_f16(kernels);
    test_entries(kernels);
}

// test-kernels        every table that this CPU runs
// test-kernels NAME   the table NAME, which must be the one that the op uses here, with the environment as it is
int main(int argc, char ** argv) {
    if (argc > 1) {
        check::begin(format("dispatch/%s", argv[1]).c_str());
        CHECK(strcmp(dqrelo_cpu_kernels()->name, argv[1]) == 0);
        test_isa(dqrelo_cpu_kernels());
        return check::finish();
    }
    test_begins();
    test_early_features();
    const dqrelo_kernels * list[8];
    for (int i = dqrelo_cpu_kernels_all(list, 8) - 1; i >= 0; i--) {
        test_isa(list[i]);
    }
    return check::finish();
}
