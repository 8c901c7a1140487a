// op-case.h: one op DQRELO on random input, as a tensor to be computed.
#pragma once

#include "random-entry.h"

#include "ggml.h"

#include <algorithm>
#include <array>

using shape = std::array<int64_t, 4>;

// What owns a position of the token axis.
struct token_delta {
    int     delta;
    float   scale;
    int64_t length = 0; // How many tokens its sequence has in the batch, in whole steps of DQRELO_FOLD_ROWS.
};

// Owners that take turns: delta 0, base, delta 1 with a scale, an empty entry, delta 0 with scale 0, delta 1 negated.
inline std::vector<token_delta> mixed_tokens(int64_t n) {
    const token_delta        turn[] = { { 0, 1.0f }, { -1, 1.0f }, { 1, 0.5f }, { 2, 1.0f }, { 0, 0.0f }, { 1, -1.0f } };
    std::vector<token_delta> out;
    for (int64_t i = 0; i < n; i++) {
        out.push_back(turn[i % 6]);
    }
    return out;
}

// Returns an F32 tensor with `values`, whose rows lie 5 elements further apart than they are long if `gaps`.
inline ggml_tensor * make_f32(ggml_context * ctx, const shape & ne, const std::vector<float> & values, bool gaps) {
    ggml_tensor * whole  = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, ne[0] + (gaps ? 5 : 0), ne[1], ne[2], ne[3]);
    const int64_t n_rows = ne[1] * ne[2] * ne[3];
    for (int64_t r = 0; r < n_rows; r++) {
        memcpy((char *) whole->data + (size_t) r * whole->nb[1], values.data() + r * ne[0], (size_t) ne[0] * sizeof(float));
    }
    return gaps ? ggml_view_4d(ctx, whole, ne[0], ne[1], ne[2], ne[3], whole->nb[1], whole->nb[2], whole->nb[3], 0) : whole;
}

struct op_case {
    dqrelo_form                       form   = DQRELO_FORM_MATMUL;
    shape                             ne     = { 33, 1, 1, 1 }; // shape of y
    int64_t                           n_in   = 64;              // MATMUL, MATMUL_ID: row length of x
    bool                              one_x  = false;           // MATMUL_ID: x has one row a token, for all of its experts
    std::array<int32_t, 3>            stride = { 1, 0, 0 };
    std::vector<token_delta>          tokens;
    std::vector<const random_entry *> entries;        // nullptr is a zeroed entry.
    std::vector<const random_stack *> stacks;         // They take the place of entries, for weights of three dimensions.
    std::vector<int32_t>              ids;            // one for each row of y, or none
    bool                              gaps   = false; // Rows of x, y and ids are further apart than their length.
    bool                              sorted = true;  // The tokens come sorted, too.

    std::vector<float> y, x, out; // They are contiguous copies, row after row.

    int64_t n_rows() const { return ne[1] * ne[2] * ne[3]; }
    bool    is_matmul() const { return form == DQRELO_FORM_MATMUL || form == DQRELO_FORM_MATMUL_ID; }
    int64_t x_row() const { return is_matmul() ? n_in : ne[0]; }
    int64_t x_rows() const { // It counts the rows of a token.
        return one_x ? 1 : ne[1];
    }
    const float *       x_of(int64_t row) const { return x.data() + (one_x ? row / ne[1] : row) * x_row(); }
    const token_delta & token(int64_t row) const {
        const int64_t i1 = row % ne[1];
        const int64_t i2 = row / ne[1] % ne[2];
        const int64_t i3 = row / (ne[1] * ne[2]);
        return tokens[(size_t) (i1 * stride[0] + i2 * stride[1] + i3 * stride[2])];
    }

    // Returns the id of a row, kept in 0 .. n - 1 as the op does.
    int64_t id_of(int64_t row, int64_t n) const { return std::clamp<int64_t>(ids[(size_t) row], 0, n - 1); }

    // Returns the delta of a row, or null.
    const random_entry * entry_of(int64_t row) const {
        const int delta = token(row).delta;
        if (delta < 0 || stacks.empty()) {
            return delta < 0 ? nullptr : entries[(size_t) delta];
        }
        const random_stack * stack = stacks[(size_t) delta];
        if (!stack) {
            return nullptr;
        }
        const int64_t i2 = row / ne[1] % ne[2];
        switch (form) {
            case DQRELO_FORM_MATMUL_ID: return stack->matrices[(size_t) id_of(row, (int64_t) stack->matrices.size())].get();
            case DQRELO_FORM_MATMUL: return stack->matrices[(size_t) (i2 / (ne[2] / stack->e.n_mat))].get();
            default: return stack->matrices[(size_t) (i2 % stack->e.n_mat)].get();
        }
    }
    size_t       n_deltas() const { return stacks.empty() ? entries.size() : stacks.size(); }
    dqrelo_entry delta(size_t k) const {
        if (stacks.empty()) {
            return entries[k] ? entries[k]->e : dqrelo_entry{};
        }
        return stacks[k] ? stacks[k]->e : dqrelo_entry{};
    }

    void fill(uint32_t seed) {
        std::mt19937 rng(seed);
        y = random_row(ne[0] * n_rows(), rng);
        x = random_row(x_row() * x_rows() * ne[2] * ne[3], rng);
    }

    ggml_tensor * make_ids(ggml_context * ctx) const {
        const int64_t n_row = ne[1] + (gaps ? 3 : 0);
        ggml_tensor * whole = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, n_row, ne[2], ne[3]);
        for (size_t r = 0; r < ids.size(); r++) {
            ((int32_t *) whole->data)[(int64_t) r / ne[1] * n_row + (int64_t) r % ne[1]] = ids[r];
        }
        return gaps ? ggml_view_3d(ctx, whole, ne[1], ne[2], ne[3], whole->nb[1], whole->nb[2], 0) : whole;
    }

    // Makes the op's node, its sources filled in.
    ggml_tensor * build(ggml_context * ctx) const {
        ggml_tensor * ty    = make_f32(ctx, ne, y, gaps);
        ggml_tensor * tx    = make_f32(ctx, { x_row(), x_rows(), ne[2], ne[3] }, x, gaps);
        ggml_tensor * tids  = ids.empty() ? nullptr : make_ids(ctx);
        ggml_tensor * table = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, (int64_t) (sizeof(dqrelo_entry) * n_deltas()));
        for (size_t k = 0; k < n_deltas(); k++) {
            ((dqrelo_entry *) table->data)[k] = delta(k);
        }
        ggml_tensor * tokens_tensor = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, (int64_t) tokens.size(), sorted ? 2 : 1);
        for (size_t i = 0; i < tokens.size(); i++) {
            ((float *) tokens_tensor->data)[2 * i]     = (float) tokens[i].delta + ggml_dqrelo_length(tokens[i].length);
            ((float *) tokens_tensor->data)[2 * i + 1] = tokens[i].scale;
        }
        if (sorted) {
            ggml_dqrelo_sort_tokens((float *) tokens_tensor->data, (int64_t) tokens.size());
        }
        return ggml_dqrelo(ctx, form, ty, tx, tids, table, tokens_tensor, stride.data());
    }
};
