// sparse-cases.h: the shapes and mixtures of sparse weights that every implementation of the op DQRELO is tested with; a part of
// op-cases.h.
#pragma once

// Sparse weights: places by a mask and by lists, every type of values, rows that end inside a block, inside a piece and behind several.
static void test_sparse() {
    const ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_I8 };
    for (sparsity kind : { sparsity::MASK, sparsity::LISTS }) {
        for (int64_t n_in : { 8, 136, 512, 1000, 2312 }) {
            entry_options o;
            o.n_in           = n_in;
            o.n_out          = 37;
            o.sparse         = kind;
            o.type_entries   = types[n_in / 8 % 3];
            entry_options o1 = o;
            o1.type_entries  = types[(n_in / 8 + 1) % 3];
            const random_entry a(o, 111), b(o1, 112);
            const std::string  name = std::string(kind == sparsity::MASK ? "mask" : "lists") + "/n_in=" + std::to_string(n_in);
            op_case            c;
            c.n_in    = n_in;
            c.entries = { &a, &b, nullptr };
            for (int64_t n_rows : { 1, 7, 70 }) {
                c.ne     = { o.n_out, n_rows, 1, 1 };
                c.gaps   = n_rows == 7;
                c.tokens = mixed_tokens(n_rows);
                check_case("matmul/sparse/" + name + "/rows=" + std::to_string(n_rows), c);
            }
            c.form   = DQRELO_FORM_ROWS;
            c.ne     = { n_in, 13, 1, 1 };
            c.tokens = mixed_tokens(13);
            for (int i = 0; i < 13; i++) {
                c.ids.push_back(i * 31 % 37);
            }
            check_case("rows/sparse/" + name, c);
            c.ids.clear();
            c.ne     = { n_in, 37, 1, 1 };
            c.stride = { 0, 0, 0 };
            for (dqrelo_form form : { DQRELO_FORM_ADD, DQRELO_FORM_MUL }) {
                c.form   = form;
                c.tokens = { { 1, 0.5f } };
                check_case((form == DQRELO_FORM_ADD ? "add/sparse/" : "mul/sparse/") + name, c);
            }
        }
    }
}

// Sparse experts, beside those of other deltas.
static void test_sparse_stacks() {
    for (sparsity kind : { sparsity::MASK, sparsity::LISTS }) {
        entry_options o;
        o.n_in           = 328;
        o.n_out          = 41;
        o.sparse         = kind;
        o.type_entries   = GGML_TYPE_I8;
        entry_options o1 = o;
        o1.sparse        = sparsity::NONE;
        o1.rank          = 5;
        const random_stack a(o, 5, 113), b(o1, 5, 114);
        const std::string  name = kind == sparsity::MASK ? "mask" : "lists";
        op_case            c;
        c.form   = DQRELO_FORM_MATMUL_ID;
        c.n_in   = o.n_in;
        c.stride = { 0, 1, 0 };
        c.stacks = { &a, &b, nullptr };
        for (int64_t n_tokens : { 1, 5, 40 }) {
            c.ne     = { o.n_out, 3, n_tokens, 1 };
            c.one_x  = n_tokens != 5;
            c.tokens = mixed_tokens(n_tokens);
            c.ids.clear();
            for (int64_t r = 0; r < c.n_rows(); r++) {
                c.ids.push_back((int32_t) ((r * 7 + r / 3) % 5));
            }
            check_case("matmul_id/sparse/" + name + "/tokens=" + std::to_string(n_tokens), c);
        }
        op_case whole;
        whole.form   = DQRELO_FORM_ADD;
        whole.ne     = { o.n_in, o.n_out, 5, 1 };
        whole.stride = { 0, 0, 0 };
        whole.stacks = { &a };
        whole.tokens = { { 0, 0.5f } };
        check_case("add/a stack of sparse weights/" + name, whole);
        op_case heads;
        heads.n_in   = o.n_in;
        heads.ne     = { o.n_out, 4, 10, 1 };
        heads.tokens = mixed_tokens(4);
        heads.stacks = { &a, &b, nullptr };
        check_case("matmul/batched/sparse/" + name, heads);
    }
}
