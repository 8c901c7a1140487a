// fold-case.h: an op DQRELO that computes the base's product itself, on random input.
#pragma once

#include "op-case.h"

struct fold_case {
    op_case       c; // Its y is not read.
    random_matrix w; // in a type of random_matrix
    ggml_type     type     = GGML_TYPE_F32;
    int64_t       n_mat    = 1;
    double        rounding = 0.0; // of what is multiplied, relative, by an implementation that rounds the factors of all rows alike

    fold_case(ggml_type type, int64_t n_in, int64_t n_out, int64_t n_mat = 1) : type(type), n_mat(n_mat) {
        std::mt19937 rng(61);
        w      = make_matrix(type, n_in * n_out * n_mat, rng);
        c.n_in = n_in;
        c.ne   = { n_out, 0, 1, 1 };
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

    ggml_tensor * weight(ggml_context * ctx) const {
        ggml_tensor * t = ggml_new_tensor_3d(ctx, type, c.n_in, c.ne[0], n_mat);
        memcpy(t->data, w.data.data(), w.data.size());
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
        const double of_factors = rounding > 0.0 ? rounding : is_folded(r) || type == GGML_TYPE_F32 ? 0.0 : 1.0 / 128;
        for (int64_t i = 0; i < c.ne[0]; i++) {
            bounded y;
            for (int64_t j = 0; j < c.n_in; j++) {
                y.add(w_r[i * c.n_in + j] * x[j]);
            }
            const double value     = y.value + (delta ? s * want.value[(size_t) i] : 0.0);
            const double magnitude = y.magnitude + (delta ? std::fabs(s) * magnitude_of(*entry, i, x) : 0.0);
            const double tolerance = (delta ? std::fabs(s) * want.tolerance[(size_t) i] : 0.0) +
                                     of_factors * (is_folded(r) ? magnitude : y.magnitude) + (double) (c.n_in / 8 + 16) * U_F32 * magnitude;
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
