// fold-cases.h: what ops DQRELO that compute the base's product are tested with: rows of long and short sequences, deltas of every kind.
#pragma once

#include "fold-case.h"

// Returns tokens of one delta; `many` where their sequence is long enough to be folded.
inline std::vector<token_delta> all_of(int delta, int64_t n, float scale = 1.0f, bool many = true) {
    return std::vector<token_delta>((size_t) n, { delta, scale, many && delta >= 0 ? DQRELO_FOLD_ROWS : 0 });
}

// Returns rows that are folded and others of the same delta, several scales, and rows of the base, neighbours and not.
inline std::vector<token_delta> mixed() {
    std::vector<token_delta> tokens = all_of(0, 20);
    const auto               add    = [&](const std::vector<token_delta> & more) { tokens.insert(tokens.end(), more.begin(), more.end()); };
    add(all_of(-1, 3));
    add(all_of(1, 40, 0.75f));
    add(all_of(0, 13));
    add(all_of(2, 31, 1.0f, false));
    add(all_of(1, 5, 0.75f, false));
    add(all_of(3, 17));
    add(all_of(3, 17, -0.5f));
    add(all_of(3, 3, -0.5f, false));
    add(all_of(0, 2, 0.0f));
    add(all_of(4, 33));
    add(all_of(5, 2));
    add(all_of(6, 35, 0.5f));
    add(all_of(7, 33, -1.0f));
    add(all_of(6, 3, 0.5f, false));
    add(all_of(-1, 1));
    add(all_of(8, 34, 0.5f));
    add(all_of(8, 3, 2.0f));
    add(all_of(8, 3, 0.5f, false));
    add(all_of(9, 33, -0.5f));
    add(all_of(9, 2, -0.5f, false));
    return tokens;
}

// Deltas of every kind for one weight.
struct kinds {
    random_entry planes, scaled, factors, codes, dense, lists, mask, decoded, whole;

    static entry_options options(int64_t n_in, int64_t n_out, int n_planes, int rank) {
        entry_options o;
        o.n_in     = n_in;
        o.n_out    = n_out;
        o.n_planes = n_planes;
        o.rank     = rank;
        return o;
    }
    static entry_options scaled_options(int64_t n_in, int64_t n_out) {
        entry_options o = options(n_in, n_out, 3, 5);
        o.scale_per_row = true;
        o.cscale        = true;
        return o;
    }
    static entry_options code_options(int64_t n_in, int64_t n_out) {
        entry_options o = options(n_in, n_out, 1, 0);
        o.plane_ranks   = { 8 };
        return o;
    }
    // Has more planes to a row of B than it takes for B and A to be decoded. Their codes begin in the middle of bytes.
    static entry_options decoded_options(int64_t n_in, int64_t n_out) {
        entry_options o = options(n_in, n_out, 0, 0);
        o.cscale        = true;
        o.plane_ranks   = { 29, 21, 19, 11 };
        return o;
    }
    // Is folded, decoded, and has factors.
    static entry_options whole_options(int64_t n_in, int64_t n_out) {
        entry_options o = scaled_options(n_in, n_out);
        o.plane_ranks   = { 13, 13, 13, 8, 1 };
        return o;
    }
    static entry_options dense_options(int64_t n_in, int64_t n_out) {
        entry_options o = options(n_in, n_out, 0, 0);
        o.dense         = true;
        return o;
    }

    static entry_options sparse_options(int64_t n_in, int64_t n_out, sparsity kind, ggml_type type) {
        entry_options o = options(n_in, n_out, 0, 0);
        o.sparse        = kind;
        o.type_entries  = type;
        return o;
    }

    kinds(int64_t n_in, int64_t n_out) :
        planes(options(n_in, n_out, 1, 9), 71),
        scaled(scaled_options(n_in, n_out), 72),
        factors(options(n_in, n_out, 0, 7), 73),
        codes(code_options(n_in, n_out), 74),
        dense(dense_options(n_in, n_out), 75),
        lists(sparse_options(n_in, n_out, sparsity::LISTS, GGML_TYPE_I8), 76),
        mask(sparse_options(n_in, n_out, sparsity::MASK, GGML_TYPE_BF16), 77),
        decoded(decoded_options(n_in, n_out), 78),
        whole(whole_options(n_in, n_out), 79) {}

    std::vector<const random_entry *> all() const {
        return { &planes, &scaled, &factors, &codes, &dense, nullptr, &lists, &mask, &decoded, &whole };
    }
};

// The kinds as stacks of n_mat matrices.
struct stack_kinds {
    std::vector<std::unique_ptr<random_stack>> stacks;

    stack_kinds(int64_t n_in, int64_t n_out, int64_t n_mat) {
        uint32_t seed = 81;
        for (const entry_options & o :
             { kinds::options(n_in, n_out, 1, 9), kinds::scaled_options(n_in, n_out), kinds::options(n_in, n_out, 0, 7),
               kinds::code_options(n_in, n_out), kinds::dense_options(n_in, n_out) }) {
            stacks.push_back(std::make_unique<random_stack>(o, n_mat, seed++));
        }
        stacks.push_back(nullptr);
        stacks.push_back(std::make_unique<random_stack>(kinds::sparse_options(n_in, n_out, sparsity::LISTS, GGML_TYPE_I8), n_mat, seed++));
        stacks.push_back(std::make_unique<random_stack>(kinds::sparse_options(n_in, n_out, sparsity::MASK, GGML_TYPE_BF16), n_mat, seed++));
        stacks.push_back(std::make_unique<random_stack>(kinds::decoded_options(n_in, n_out), n_mat, seed++));
        stacks.push_back(std::make_unique<random_stack>(kinds::whole_options(n_in, n_out), n_mat, seed++));
    }

    std::vector<const random_stack *> all() const {
        std::vector<const random_stack *> out;
        for (const auto & stack : stacks) {
            out.push_back(stack.get());
        }
        return out;
    }
};
