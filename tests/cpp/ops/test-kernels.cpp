// test-kernels.cpp: every instruction set's kernels against the scalar ones, and one entry's matrix form against F64.
// Needs no ggml at link time, so it runs under sanitizers with the kernels compiled in.

#include "sign-kernels.h"
#include "support/check.h"
#include "support/quantised.h"
#include "support/random-entry.h"
#include "support/transposed-entry.h"

#include "cpu/entry.h"
#include "cpu/factor-types.h"
#include "cpu/kernels.h"

#include <algorithm>
#include <string>

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
    const int64_t               zq_stride = dqrelo_q_bytes(e.n_codes) + 128;
    std::vector<float>          bx((size_t) (n_t * (e.n_codes + 5))), z((size_t) e.n_codes);
    std::vector<int8_t>         zq((size_t) (n_t * zq_stride));
    std::vector<dqrelo_act>     zact(x.size());
    const dqrelo_group          g = { e,          rows.data(), n_t,           q.data(),  act.data(), work.data(),
                                      e.rank + 3, bx.data(),   e.n_codes + 5, zq.data(), zq_stride,  zact.data() };
    for (size_t t = 0; t < x.size() && dqrelo_entry_has_signs(&e); t++) {
        kernels->quantize_row(x[t].data(), e.cscale, e.n_in, q.data() + (int64_t) t * dqrelo_q_bytes(e.n_in), &act[t]);
    }
    const auto tables = early && dqrelo_entry_has_signs(&e) ? make_tables(kernels, q.data(), e.n_in, &act[0]) : std::vector<cache_line>();
    // As the op shares them out: whole groups of transposed signs.
    const auto share = [&](int64_t n, int ith) { return std::min<int64_t>(n, (n + 15) / 16 * ith / nth * 16); };
    for (int ith = 0; ith < nth && e.rank > 0; ith++) {
        const int64_t r0 = e.rank * ith / nth, r1 = e.rank * (ith + 1) / nth;
        const int64_t i0 = share(e.n_out, ith), i1 = share(e.n_out, ith + 1);
        n_early[(size_t) ith] = early ? dqrelo_early_features(&g, i1 - i0) : 0;
        if (n_early[(size_t) ith] > 0) {
            dqrelo_matmul_factor_early(kernels, &g, r0, r1, i0, n_early[(size_t) ith], &scratch[(size_t) ith]);
        } else {
            dqrelo_matmul_factor(kernels, &g, r0, r1, dqrelo_apply_begin(&e, 0, e.n_out));
        }
    }
    for (int ith = 0; ith < nth && e.n_codes > 0; ith++) {
        dqrelo_matmul_codes(kernels, &g, share(e.n_codes, ith), share(e.n_codes, ith + 1), scratch.data());
    }
    for (int64_t t = 0; t < n_t && e.n_codes > 0; t++) {
        dqrelo_matmul_quantize(kernels, &g, t, z.data());
    }
    const auto ztables = early && e.n_codes > 0 ? make_tables(kernels, zq.data(), e.n_codes, &zact[0]) : std::vector<cache_line>();
    for (int ith = 0; ith < nth; ith++) {
        dqrelo_matmul_apply(kernels, &g, share(e.n_out, ith), share(e.n_out, ith + 1), n_early[(size_t) ith], {}, &scratch[(size_t) ith]);
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
    const auto check_one_row = [&](const dqrelo_entry & e) {
        CHECK(run_entry(kernels, e, { x.back() }, { y.back() }, s, 1)[0] == got.back());
        CHECK(run_entry(kernels, e, { x.back() }, { y.back() }, s, 1, true)[0] == got.back());
        CHECK(run_entry(kernels, e, { x.back() }, { y.back() }, s, 3, true)[0] == got.back());
    };
    check_one_row(r.e);
    if (kernels->takes_transposed) {
        const transposed_entry transposed(r.e);
        CHECK(run_entry(kernels, transposed.e, x, y, s, 1) == got);
        CHECK(run_entry(kernels, transposed.e, x, y, s, 3) == got);
        check_one_row(transposed.e);
    }
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
    test_sign_kernels(kernels);
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
    test_transposed_signs();
    const dqrelo_kernels * list[8];
    for (int i = dqrelo_cpu_kernels_all(list, 8) - 1; i >= 0; i--) {
        test_isa(list[i]);
    }
    return check::finish();
}
