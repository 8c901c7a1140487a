// random-entry.h: a delta entry of random content beside its decoded values in F64, and what it must add to a row.
#pragma once

#include "dqrelo-op.h"
#include "random-matrix.h"
#include "random-sparse.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

struct entry_options {
    int64_t   n_in          = 64;
    int64_t   n_out         = 33;
    int       n_planes      = 1;
    int       rank          = 0;
    ggml_type type_u        = GGML_TYPE_F16;
    ggml_type type_v        = GGML_TYPE_F16;
    bool      scale_per_row = false;
    bool      cscale        = false;
    bool      zero_scale    = false;
    bool      dense         = false;
    ggml_type type_dense    = GGML_TYPE_F32;
    sparsity  sparse        = sparsity::NONE;
    ggml_type type_entries  = GGML_TYPE_F16;

    std::vector<int> plane_ranks = {}; // of sign factors, which have a multiple of 8 codes

    int n_codes() const { return std::accumulate(plane_ranks.begin(), plane_ranks.end(), 0); }
};

// Random sign factors, and their values.
struct random_sign_factors {
    bytes               vsign, usign;
    random_matrix       vscale, uscale;
    std::vector<double> a, b;              // (n_out, rank) and (rank, n_in), row-major
    std::vector<double> row_norm, row_sum; // of a b: the root of the sum of squares of a row, and the sum of magnitudes

    static double sign_of(const bytes & bits, int64_t at) { return (bits[(size_t) (at / 8)] >> (at % 8)) & 1 ? 1.0 : -1.0; }

    void fill(dqrelo_entry & e, const entry_options & o, std::mt19937 & rng) {
        e.n_codes = o.n_codes();
        std::copy(o.plane_ranks.begin(), o.plane_ranks.end(), e.plane_ranks);
        vscale = make_matrix(GGML_TYPE_BF16, e.n_codes, rng);
        uscale = make_matrix(GGML_TYPE_BF16, e.n_codes, rng);
        vsign.resize((size_t) (o.n_in / 8 * e.n_codes));
        usign.resize((size_t) (e.n_codes / 8 * o.n_out));
        for (bytes * bits : { &vsign, &usign }) {
            for (uint8_t & byte : *bits) {
                byte = (uint8_t) rng();
            }
        }
        e.vsign  = vsign.data();
        e.vscale = vscale.data.data();
        e.usign  = usign.data();
        e.uscale = uscale.data.data();
        decode(e);
    }

    void decode(const dqrelo_entry & e) {
        const int64_t rank = e.plane_ranks[0];
        a.assign((size_t) (e.n_out * rank), 0.0);
        b.assign((size_t) (e.n_in * rank), 0.0);
        int64_t code = 0;
        for (const int32_t n : e.plane_ranks) {
            for (int64_t k = 0; k < n; k++, code++) {
                for (int64_t i = 0; i < e.n_out; i++) {
                    a[(size_t) (i * rank + k)] += uscale.value[(size_t) code] * sign_of(usign, i * e.n_codes + code);
                }
                for (int64_t j = 0; j < e.n_in; j++) {
                    b[(size_t) (k * e.n_in + j)] += vscale.value[(size_t) code] * sign_of(vsign, code * e.n_in + j);
                }
            }
        }
        for (int64_t i = 0; i < e.n_out; i++) {
            double                    squares = 0.0, sum = 0.0;
            const std::vector<double> row = row_of(e, i);
            for (const double value : row) {
                squares += value * value;
                sum += std::fabs(value);
            }
            row_norm.push_back(std::sqrt(squares));
            row_sum.push_back(sum);
        }
    }

    std::vector<double> row_of(const dqrelo_entry & e, int64_t i) const {
        std::vector<double> row((size_t) e.n_in, 0.0);
        for (int64_t k = 0; k < e.plane_ranks[0]; k++) {
            for (int64_t j = 0; j < e.n_in; j++) {
                row[(size_t) j] += a[(size_t) (i * e.plane_ranks[0] + k)] * b[(size_t) (k * e.n_in + j)];
            }
        }
        return row;
    }

    double at(const dqrelo_entry & e, int64_t i, int64_t j) const {
        double sum = 0.0;
        for (int64_t k = 0; k < e.plane_ranks[0]; k++) {
            sum += a[(size_t) (i * e.plane_ranks[0] + k)] * b[(size_t) (k * e.n_in + j)];
        }
        return sum;
    }
};

// Owns what its entry points to: do not copy.
struct random_entry {
    dqrelo_entry       e = {};
    bytes              sign[DQRELO_MAX_PLANES];
    std::vector<float> scale[DQRELO_MAX_PLANES];
    std::vector<float> cscale;
    random_matrix      u, v, dense;

    random_sign_factors signs;
    random_sparse       sparse;

    random_entry(const entry_options & o, uint32_t seed) {
        std::mt19937                          rng(seed);
        std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
        e.n_in  = o.n_in;
        e.n_out = o.n_out;
        e.n_mat = 1;
        if (o.dense) {
            dense        = make_matrix(o.type_dense, o.n_in * o.n_out, rng);
            e.dense      = dense.data.data();
            e.type_dense = o.type_dense;
            return;
        }
        if (o.sparse != sparsity::NONE) {
            sparse.fill(e, o.sparse, o.type_entries, rng);
            return;
        }
        e.n_planes = o.n_planes;
        for (int p = 0; p < o.n_planes; p++) {
            sign[p].resize((size_t) (o.n_in / 8 * o.n_out));
            for (uint8_t & b : sign[p]) {
                b = (uint8_t) rng();
            }
            const bool per_row = o.scale_per_row && p % 2 == 0; // One entry has planes of both kinds.
            scale[p].resize(per_row ? (size_t) o.n_out : 1);
            for (float & s : scale[p]) {
                s = o.zero_scale ? 0.0f : uniform(rng) / (float) (1 << p);
            }
            e.scale_per_row |= (per_row ? 1 : 0) << p;
            e.sign[p]  = sign[p].data();
            e.scale[p] = scale[p].data();
        }
        if (o.cscale) {
            cscale.resize((size_t) o.n_in);
            for (float & c : cscale) {
                c = uniform(rng);
            }
            e.cscale = cscale.data();
        }
        e.rank = o.rank;
        if (o.rank > 0) {
            u        = make_matrix(o.type_u, o.rank * o.n_out, rng);
            v        = make_matrix(o.type_v, o.rank * o.n_in, rng);
            e.u      = u.data.data();
            e.v      = v.data.data();
            e.type_u = o.type_u;
            e.type_v = o.type_v;
        }
        if (!o.plane_ranks.empty()) {
            signs.fill(e, o, rng);
        }
    }
    random_entry(const random_entry &)             = delete;
    random_entry & operator=(const random_entry &) = delete;

    double sign_at(int p, int64_t i, int64_t j) const { return (sign[p][(size_t) (i * (e.n_in / 8) + j / 8)] >> (j % 8)) & 1 ? 1.0 : -1.0; }
    double scale_at(int p, int64_t i) const { return scale[p][(e.scale_per_row >> p) & 1 ? (size_t) i : 0]; }
    double cscale_at(int64_t j) const { return cscale.empty() ? 1.0 : cscale[(size_t) j]; }

    // D_hat where it is stored as such, dense or sparse; else empty
    const std::vector<double> & whole() const { return e.entries ? sparse.value : dense.value; }
};

// A stack of matrices: each with its decoded values, and one entry for all, whose arrays hold theirs one behind the other.
struct random_stack {
    dqrelo_entry                               e = {};
    std::vector<std::unique_ptr<random_entry>> matrices;
    bytes                                      sign[DQRELO_MAX_PLANES], scale[DQRELO_MAX_PLANES], cscale, u, v, dense;
    bytes                                      vsign, vscale, usign, uscale;
    random_sparse                              sparse;

    random_stack(const entry_options & o, int64_t n_mat, uint32_t seed) {
        for (int64_t m = 0; m < n_mat; m++) {
            matrices.push_back(std::make_unique<random_entry>(o, seed + 1000 * (uint32_t) m));
            const random_entry & one = *matrices.back();
            for (int p = 0; p < one.e.n_planes; p++) {
                append_all(sign[p], one.sign[p]);
                append_all(scale[p], one.scale[p]);
            }
            append_all(cscale, one.cscale);
            append_all(u, one.u.data);
            append_all(v, one.v.data);
            append_all(dense, one.dense.data);
            append_all(vsign, one.signs.vsign);
            append_all(vscale, one.signs.vscale.data);
            append_all(usign, one.signs.usign);
            append_all(uscale, one.signs.uscale.data);
            sparse.append(one.sparse);
        }
        e       = matrices.front()->e;
        e.n_mat = n_mat;
        for (int p = 0; p < e.n_planes; p++) {
            e.sign[p]  = sign[p].data();
            e.scale[p] = (const float *) scale[p].data();
        }
        e.cscale = e.cscale ? (const float *) cscale.data() : nullptr;
        e.u      = e.u ? u.data() : nullptr;
        e.v      = e.v ? v.data() : nullptr;
        e.dense  = e.dense ? dense.data() : nullptr;
        e.vsign  = e.vsign ? vsign.data() : nullptr;
        e.vscale = e.vscale ? vscale.data() : nullptr;
        e.usign  = e.usign ? usign.data() : nullptr;
        e.uscale = e.uscale ? uscale.data() : nullptr;
        if (e.entries) {
            sparse.point(e, o.type_entries);
        }
    }
    random_stack(const random_stack &)             = delete;
    random_stack & operator=(const random_stack &) = delete;

    template <typename T>
    static void append_all(bytes & out, const std::vector<T> & values) {
        const uint8_t * data = (const uint8_t *) values.data();
        out.insert(out.end(), data, data + values.size() * sizeof(T));
    }
};

// A value with the sum of the magnitudes it was added up from, which bounds its rounding error.
struct bounded {
    double value     = 0.0;
    double magnitude = 0.0;
    void   add(double term) {
        value += term;
        magnitude += std::fabs(term);
    }
    void add(const bounded & b, double factor) {
        value += b.value * factor;
        magnitude += b.magnitude * std::fabs(factor);
    }
};

constexpr double U_F32 = 1.0 / (1 << 24); // unit roundoff of F32

// (D_hat x)_i for every i, and how far a right F32 kernel may be from it.
struct expected_delta {
    std::vector<double> value, tolerance;
};

// What q, which is off by at most d/2, uniformly, adds to the error of a sum of n terms q_j a_j with random signs of a: the standard
// deviation is d sqrt(sum a_j^2 / 12). Six of those, or the sure bound d/2 sum |a_j| where it is smaller.
inline double quantisation_error(double step, double norm, double sum) {
    return step * std::fmin(6.0 * norm / std::sqrt(12.0), sum / 2.0);
}

// A (B (c . x)) for every i. Tolerance, element by element:
//   quantisation  of c . x, through A B; and of what the codes of A are multiplied with, z, whose signs are +-1
//   rounding      of c . x and z before they are quantised, 4u of each term; 8 planes, and 16 roundings for products with scales and steps
inline expected_delta expect_sign_factors(const random_entry & r, const float * x, double step) {
    const dqrelo_entry & e = r.e;
    if (e.n_codes == 0) {
        const std::vector<double> zeros((size_t) e.n_out, 0.0);
        return { zeros, zeros };
    }
    std::vector<double> cx((size_t) e.n_in);
    double              x_max = 0.0;
    for (int64_t j = 0; j < e.n_in; j++) {
        cx[(size_t) j] = r.cscale_at(j) * x[j];
        x_max          = std::max(x_max, std::fabs(cx[(size_t) j]));
    }
    std::vector<bounded> bx((size_t) e.plane_ranks[0]);
    std::vector<double>  z((size_t) e.n_codes);
    double               z_max = 0.0, z_sum = 0.0, z_rounding = 0.0;
    int64_t              code = 0;
    for (const int32_t n : e.plane_ranks) {
        for (int64_t k = 0; k < n; k++, code++) {
            double dot = 0.0;
            for (int64_t j = 0; j < e.n_in; j++) {
                dot += random_sign_factors::sign_of(r.signs.vsign, code * e.n_in + j) * cx[(size_t) j];
            }
            bx[(size_t) k].add(r.signs.vscale.value[(size_t) code] * dot);
        }
    }
    code = 0;
    for (const int32_t n : e.plane_ranks) {
        for (int64_t k = 0; k < n; k++, code++) {
            const double scale = std::fabs(r.signs.uscale.value[(size_t) code]);
            z_max              = std::max(z_max, scale * std::fabs(bx[(size_t) k].value));
            z_sum += scale * std::fabs(bx[(size_t) k].value);
            z_rounding += scale * bx[(size_t) k].magnitude;
        }
    }
    const double   n_codes = (double) e.n_codes;
    expected_delta out;
    for (int64_t i = 0; i < e.n_out; i++) {
        double value = 0.0;
        for (int64_t k = 0; k < e.plane_ranks[0]; k++) {
            value += r.signs.a[(size_t) (i * e.plane_ranks[0] + k)] * bx[(size_t) k].value;
        }
        out.value.push_back(value);
        out.tolerance.push_back(quantisation_error(step, r.signs.row_norm[(size_t) i], r.signs.row_sum[(size_t) i]) +
                                quantisation_error(z_max / 32639.0, std::sqrt(n_codes), n_codes) +
                                U_F32 * (4.0 * x_max * r.signs.row_sum[(size_t) i] + 4.0 * z_sum + 24.0 * z_rounding));
    }
    return out;
}

// Tolerance of a matrix form, element by element:
//   quantisation  of c . x, whose signs are +-1, times the plane's scale
//   rounding      a sum of n terms in F32, in any order, is off by at most n u (sum of magnitudes); V x then U t: (n_in + rank) u. 16 more
//   roundings
//                 for the products with c, d, scales and s.
inline expected_delta expect_matmul(const random_entry & r, const float * x, double step) {
    const dqrelo_entry & e = r.e;
    const double         n = (double) e.n_in;
    std::vector<bounded> t((size_t) e.rank);
    for (int64_t k = 0; k < e.rank; k++) {
        for (int64_t j = 0; j < e.n_in; j++) {
            t[(size_t) k].add(r.v.value[(size_t) (k * e.n_in + j)] * x[j]);
        }
    }
    const expected_delta signs = expect_sign_factors(r, x, step);
    expected_delta       out;
    for (int64_t i = 0; i < e.n_out; i++) {
        bounded sum;
        double  quantisation = 0.0;
        for (int64_t j = 0; !r.whole().empty() && j < e.n_in; j++) {
            sum.add(r.whole()[(size_t) (i * e.n_in + j)] * x[j]);
        }
        for (int p = 0; p < e.n_planes; p++) {
            bounded plane;
            for (int64_t j = 0; j < e.n_in; j++) {
                plane.add(r.sign_at(p, i, j) * r.cscale_at(j) * x[j]);
            }
            sum.add(plane.value * r.scale_at(p, i));
            // the product with c is rounded before q is: 2u of each term
            quantisation += r.scale_at(p, i) * (quantisation_error(step, std::sqrt(n), n) + 2.0 * U_F32 * plane.magnitude);
        }
        for (int64_t k = 0; k < e.rank; k++) {
            sum.add(t[(size_t) k], r.u.value[(size_t) (i * e.rank + k)]);
        }
        out.value.push_back(sum.value + signs.value[(size_t) i]);
        out.tolerance.push_back(quantisation + signs.tolerance[(size_t) i] +
                                (n + e.rank + 16.0) * U_F32 * (sum.magnitude + std::fabs(signs.value[(size_t) i])));
    }
    return out;
}

// How far A B c may be off at one element by rounding: a and b are sums of up to 8 planes, and their product of plane_ranks[0] terms.
inline double sign_factor_rounding(const random_entry & r, int64_t j) {
    const dqrelo_entry & e   = r.e;
    double               sum = 0.0;
    std::vector<double>  a((size_t) e.plane_ranks[0]), b((size_t) e.plane_ranks[0]);
    int64_t              code = 0;
    for (const int32_t n : e.plane_ranks) {
        for (int64_t k = 0; k < n; k++, code++) {
            a[(size_t) k] += std::fabs(r.signs.uscale.value[(size_t) code]);
            b[(size_t) k] += std::fabs(r.signs.vscale.value[(size_t) code]);
        }
    }
    for (size_t k = 0; k < a.size(); k++) {
        sum += a[k] * b[k];
    }
    return (e.plane_ranks[0] + 20.0) * U_F32 * sum * std::fabs(r.cscale_at(j));
}

// Row `id` of D_hat. Only rounding: of rank + planes terms, and of the sign factors.
inline expected_delta expect_row(const random_entry & r, int64_t id) {
    const dqrelo_entry & e = r.e;
    expected_delta       out;
    for (int64_t j = 0; j < e.n_in; j++) {
        bounded sum;
        if (!r.whole().empty()) {
            sum.add(r.whole()[(size_t) (id * e.n_in + j)]);
        }
        for (int p = 0; p < e.n_planes; p++) {
            sum.add(r.sign_at(p, id, j) * r.cscale_at(j) * r.scale_at(p, id));
        }
        for (int64_t k = 0; k < e.rank; k++) {
            sum.add(r.u.value[(size_t) (id * e.rank + k)] * r.v.value[(size_t) (k * e.n_in + j)]);
        }
        const int64_t n_ranks = e.plane_ranks[0];
        for (int64_t k = 0; k < n_ranks; k++) {
            sum.add(r.signs.a[(size_t) (id * n_ranks + k)] * r.signs.b[(size_t) (k * e.n_in + j)] * r.cscale_at(j));
        }
        out.value.push_back(sum.value);
        out.tolerance.push_back((e.rank + e.n_planes + 16.0) * U_F32 * sum.magnitude + sign_factor_rounding(r, j));
    }
    return out;
}

inline std::vector<float> random_row(int64_t n, std::mt19937 & rng, bool outliers = false) {
    std::normal_distribution<float> normal;
    std::vector<float>              x((size_t) n);
    for (size_t j = 0; j < x.size(); j++) {
        x[j] = normal(rng) * (outliers && j % 97 == 5 ? 100.0f : 1.0f);
    }
    return x;
}
