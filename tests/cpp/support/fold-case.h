// fold-case.h: an op DQRELO that computes the base's product itself, on random input.
#pragma once

#include "integer-rounding.h"
#include "op-case.h"

#include "cpu/isa.h"
#include "ggml-backend.h"

#include <algorithm>
#include <memory>

// Returns random values of a type that ggml quantises to, in rows of n_in.
inline random_matrix quantised_matrix(ggml_type type, int64_t n_in, int64_t n_rows, std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    std::vector<float>              values((size_t) (n_in * n_rows));
    std::generate(values.begin(), values.end(), [&] { return normal(rng); });
    random_matrix m;
    m.data.resize(ggml_row_size(type, n_in) * (size_t) n_rows);
    ggml_quantize_chunk(type, values.data(), m.data.data(), 0, n_rows, n_in, nullptr);
    ggml_get_type_traits(type)->to_float(m.data.data(), values.data(), (int64_t) values.size());
    m.value.assign(values.begin(), values.end());
    return m;
}

struct fold_case {
    op_case       c; // Its y is not read.
    random_matrix w;
    ggml_type     type     = GGML_TYPE_F32;
    int64_t       n_mat    = 1;
    double        rounding = 0.0; // of what is multiplied, relative, by an implementation that rounds the factors of all rows alike
    bool          integers = dqrelo_isa_chosen() != DQRELO_ISA_NEON; // whether the CPU multiplies integers of 16 bits, if that is no other

    fold_case(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_mat = 1) : type(type), n_mat(n_mat) {
        std::mt19937 rng(61);
        const bool   is_ggml = type == GGML_TYPE_IQ4_NL || ggml_blck_size(type) == 256;
        w                    = is_ggml ? quantised_matrix(type, n_in, n_out * n_mat, rng) : make_matrix(type, n_in * n_out * n_mat, rng);
        c.n_in               = n_in;
        c.ne                 = { n_out, 0, 1, 1 };
    }

    // Makes it one of experts, of which each token uses n_used: MATMUL_ID.
    static fold_case of_experts(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_mat, int64_t n_used) {
        fold_case f(type, n_in, n_out, n_mat);
        f.c.form   = DQRELO_FORM_MATMUL_ID;
        f.c.ne[1]  = n_used;
        f.c.stride = { 0, 1, 0 };
        return f;
    }

    // Gives the tokens their deltas, random activations and, of experts, different ones; the first experts have most tokens.
    void set_tokens(const std::vector<token_delta> & tokens, uint32_t seed = 63) {
        c.tokens                                      = tokens;
        c.ne[c.form == DQRELO_FORM_MATMUL_ID ? 2 : 1] = (int64_t) tokens.size();
        c.fill(seed);
        c.ids.clear();
        std::mt19937 rng(seed);
        for (int64_t r = 0; c.form == DQRELO_FORM_MATMUL_ID && r < c.n_rows(); r++) {
            const auto    of_token = c.ids.end() - r % c.ne[1];
            const int64_t n        = rng() % 4 == 0 ? n_mat : (n_mat + c.ne[1]) / 2;
            int32_t       id       = (int32_t) (rng() % (uint32_t) n);
            while (std::find(of_token, c.ids.end(), id) != c.ids.end()) {
                id = (int32_t) ((id + 1) % n_mat);
            }
            c.ids.push_back(id);
        }
    }

    // Lets W lie in a buffer of this type, in whatever layout it has there. Returns whether it has one of its own.
    bool repack(ggml_backend_buffer_type_t buft) {
        buffer.reset(ggml_backend_buft_alloc_buffer(buft, w.data.size() + 64), ggml_backend_buffer_free);
        ggml_context *      ctx      = ggml_init({ ggml_tensor_overhead() + w.data.size() + 64, nullptr, false });
        const ggml_tensor * t        = weight(ctx);
        const bool          is_other = t->extra != nullptr;
        ggml_free(ctx);
        return is_other;
    }

    ggml_tensor * weight(ggml_context * ctx) const {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, type, c.n_in, c.ne[0], n_mat);
        if (buffer) {
            t->data = nullptr;
            ggml_backend_tensor_alloc(buffer.get(), t, ggml_backend_buffer_get_base(buffer.get()));
            if (t->extra) {
                ggml_backend_tensor_set(t, w.data.data(), 0, w.data.size());
            }
        } else {
            memcpy(t->data, w.data.data(), w.data.size());
        }
        return t;
    }

    ggml_tensor * build(ggml_context * ctx) const {
        ggml_tensor * node = c.build(ctx);
        ggml_dqrelo_fold(node, weight(ctx));
        return node;
    }

    bool is_folded(int64_t r) const {
        const token_delta & own    = c.token(r);
        const int64_t       n_used = c.form == DQRELO_FORM_MATMUL_ID ? c.ne[1] : 1;
        const int64_t       n_even = (DQRELO_FOLD_EXPERT_ROWS * n_mat + n_used - 1) / n_used; // tokens that give each expert enough
        if (own.length < DQRELO_FOLD_ROWS || (n_mat > 1 && own.length < n_even) || own.delta < 0 || own.scale == 0.0f) {
            return false;
        }
        const dqrelo_entry e = c.delta((size_t) own.delta);
        return e.n_planes > 0 || e.dense != nullptr || e.entries != nullptr;
    }

    // Returns whether row r of c.out is W x + s * delta. Without a rounding of its own, a row that is not folded has that of ggml's
    // product: of x to F16 or to blocks of 8 bits, as the type of W asks for.
    bool matches_row(int64_t r) const {
        const random_entry * entry = c.entry_of(r);
        const float          s     = c.token(r).scale;
        const double *       w_r   = w.value.data() + (n_mat > 1 ? c.id_of(r, n_mat) : 0) * c.ne[0] * c.n_in;
        const float *        x     = c.x_of(r);
        const bool           delta = entry != nullptr && s != 0.0f;
        expected_delta       want;
        if (delta) {
            double v_max = 0.0;
            for (int64_t j = 0; j < c.n_in; j++) {
                v_max = std::max(v_max, std::fabs(entry->cscale_at(j) * x[j]));
            }
            want = expect_matmul(*entry, x, v_max / 32639.0);
        }
        const std::vector<double> of_integers = integer_deviation(r);
        const double              of_factors  = rounding > 0.0 ? rounding : is_folded(r) || type == GGML_TYPE_F32 ? 0.0 : 1.0 / 128;
        for (int64_t i = 0; i < c.ne[0]; i++) {
            bounded y;
            for (int64_t j = 0; j < c.n_in; j++) {
                y.add(w_r[i * c.n_in + j] * x[j]);
            }
            const double value     = y.value + (delta ? s * want.value[(size_t) i] : 0.0);
            const double magnitude = y.magnitude + (delta ? std::fabs(s) * magnitude_of(*entry, i, x) : 0.0);
            const double tolerance = (delta ? std::fabs(s) * want.tolerance[(size_t) i] : 0.0) +
                                     of_factors * (is_folded(r) ? magnitude : y.magnitude) + DEVIATIONS * of_integers[(size_t) i] +
                                     (double) (c.n_in / 8 + 16) * U_F32 * magnitude;
            const double got       = c.out[(size_t) (r * c.ne[0] + i)];
            if (!(std::fabs(got - value) <= tolerance)) {
                printf("  row %lld, output %lld: got %.9g, expected %.9g within %.3g\n", (long long) r, (long long) i, got, value,
                       tolerance);
                return false;
            }
        }
        return true;
    }

    bool matches() const {
        for (int64_t r = 0; r < c.n_rows(); r++) {
            if (!matches_row(r)) {
                return false;
            }
        }
        return true;
    }

private:
    std::shared_ptr<ggml_backend_buffer> buffer; // where W lies, if not in a context

    static constexpr double DEVIATIONS = 7.0; // So many are met once in 10^11 times.

    bool is_decoded(int64_t r) const {
        const token_delta &  own   = c.token(r);
        const random_entry * entry = c.entry_of(r);
        return entry && own.scale != 0.0f && entry->e.n_codes >= 2 * entry->e.plane_ranks[0] && entry->e.n_codes > 0 &&
               own.length >= DQRELO_FOLD_ROWS;
    }

    // Returns the standard deviation of row r's outputs by the rounding to integers: of (W + s D) x, if those are integers, and of s A B x.
    std::vector<double> integer_deviation(int64_t r) const {
        std::vector<double>  variance((size_t) c.ne[0]);
        const random_entry * entry = c.entry_of(r);
        const double         s     = c.token(r).scale;
        const float *        x     = c.x_of(r);
        if (rounding == 0.0 && integers && is_folded(r) && type != GGML_TYPE_F32 && type != GGML_TYPE_F16) {
            const std::vector<double> row(x, x + c.n_in);
            const double *            w_r = w.value.data() + (n_mat > 1 ? c.id_of(r, n_mat) : 0) * c.ne[0] * c.n_in;
            for (int64_t i = 0; i < c.ne[0]; i++) {
                std::vector<double> folded(w_r + i * c.n_in, w_r + (i + 1) * c.n_in);
                for (int64_t j = 0; j < c.n_in; j++) {
                    folded[(size_t) j] += s * folded_value(*entry, i, j);
                }
                variance[(size_t) i] = integer_variance(folded.data(), row.data(), c.n_in);
            }
        }
        if (rounding == 0.0 && integers && is_decoded(r) && type != GGML_TYPE_F32) {
            const std::vector<double> of_codes = decoded_variance(*entry, x);
            for (size_t i = 0; i < variance.size(); i++) {
                variance[i] += s * s * of_codes[i];
            }
        }
        for (double & v : variance) {
            v = std::sqrt(v);
        }
        return variance;
    }

    // Returns value j of row i of what is added to W.
    static double folded_value(const random_entry & r, int64_t i, int64_t j) {
        double value = r.whole().empty() ? 0.0 : r.whole()[(size_t) (i * r.e.n_in + j)];
        for (int p = 0; p < r.e.n_planes; p++) {
            value += r.sign_at(p, i, j) * r.scale_at(p, i) * r.cscale_at(j);
        }
        return value;
    }

    // Returns the sum of magnitudes of what planes or a dense part add to output i, which is added to W before the products.
    static double magnitude_of(const random_entry & r, int64_t i, const float * x) {
        double sum = 0.0;
        for (int64_t j = 0; j < r.e.n_in; j++) {
            double d = r.whole().empty() ? 0.0 : std::fabs(r.whole()[(size_t) (i * r.e.n_in + j)]);
            for (int p = 0; p < r.e.n_planes; p++) {
                d += std::fabs(r.scale_at(p, i) * r.cscale_at(j));
            }
            sum += d * std::fabs(x[j]);
        }
        return sum;
    }
};
