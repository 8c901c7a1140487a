// fold-case.h: an op DQRELO that computes the base's product itself, on random input.
#pragma once

#include "op-case.h"

struct fold_case {
    op_case       c; // Its y is not read.
    random_matrix w; // in a type of random_matrix
    ggml_type     type     = GGML_TYPE_F32;
    double        rounding = 0.0; // of what is multiplied, relative, by an implementation that rounds the factors of all rows alike

    fold_case(ggml_type type, int64_t n_in, int64_t n_out) : type(type) {
        std::mt19937 rng(61);
        w      = make_matrix(type, n_in * n_out, rng);
        c.n_in = n_in;
        c.ne   = { n_out, 0, 1, 1 };
    }

    // Gives the rows their deltas, and random activations.
    void set_tokens(const std::vector<token_delta> & tokens, uint32_t seed = 63) {
        c.tokens = tokens;
        c.ne[1]  = (int64_t) tokens.size();
        c.fill(seed);
    }

    ggml_tensor * weight(ggml_context * ctx) const {
        ggml_tensor * t = ggml_new_tensor_2d(ctx, type, c.n_in, c.ne[0]);
        memcpy(t->data, w.data.data(), w.data.size());
        return t;
    }

    ggml_tensor * build(ggml_context * ctx) const {
        ggml_tensor * node = c.build(ctx);
        ggml_dqrelo_fold(node, weight(ctx));
        return node;
    }

    bool is_folded(int64_t r) const {
        const token_delta & own = c.tokens[(size_t) r];
        if (!own.many || own.delta < 0 || own.scale == 0.0f) {
            return false;
        }
        const dqrelo_entry e = c.delta((size_t) own.delta);
        return e.n_planes > 0 || e.dense != nullptr || e.entries != nullptr;
    }

    // Returns whether row r of c.out is W x + s * delta. Without a rounding of its own, a row that is not folded has that of ggml's
    // product: of x to F16 or to blocks of 8 bits, as the type of W asks for.
    bool matches_row(int64_t r) const {
        const random_entry * entry = c.entry_of(r);
        const float          s     = c.tokens[(size_t) r].scale;
        const float *        x     = c.x_of(r);
        const bool           delta = entry != nullptr && s != 0.0f;
        expected_delta       want;
        if (delta) {
            double v_max = 0.0;
            for (int64_t j = 0; j < c.n_in; j++) {
                v_max = std::fmax(v_max, std::fabs(entry->cscale_at(j) * x[j]));
            }
            want = expect_matmul(*entry, x, v_max / 32639.0);
        }
        const double of_factors = rounding > 0.0 ? rounding : is_folded(r) || type == GGML_TYPE_F32 ? 0.0 : 1.0 / 128;
        for (int64_t i = 0; i < c.ne[0]; i++) {
            bounded y;
            for (int64_t j = 0; j < c.n_in; j++) {
                y.add(w.value[(size_t) (i * c.n_in + j)] * x[j]);
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
