// sparse-builder.h: delta files with sparse weights for the tests.
#pragma once

#include "gguf-builder.h"

namespace testing {

// Adds a sparse weight [n_in, n_out] or [n_in, n_out, n_mat], about every eighth element of which is an entry. `type` is F16, BF16, or I8
// for F8.
inline void add_sparse(delta_builder & d, const std::string & name, const std::vector<uint64_t> & shape, bool has_mask, ggml_type type,
                       random_source & r) {
    d.add_weight(name, shape, 0, 0);
    const std::vector<uint64_t> ne       = delta_builder::four(shape);
    const uint64_t              n_blocks = (ne[0] + 255) / 256;
    const uint64_t              n_rows   = ne[1] * ne[2];
    std::string                 mask(n_rows * ne[0] / 8, '\0'), count(n_rows * n_blocks, '\0'), column;
    std::vector<int32_t>        start;
    uint64_t                    n = 0;
    for (uint64_t i = 0; i < n_rows; i++) {
        start.push_back((int32_t) n);
        for (uint64_t j = 0; j < ne[0]; j++) {
            if (r.below(8) == 0) {
                mask[i * (ne[0] / 8) + j / 8] = (char) (mask[i * (ne[0] / 8) + j / 8] | 1 << (j % 8));
                count[i * n_blocks + j / 256]++;
                column += (char) (j % 256);
                n++;
            }
        }
    }
    d.n_entries.back() = n;
    if (has_mask) {
        d.add_tensor(".dq_mask", "DQ_MASK", GGML_TYPE_I8, { ne[0] / 8, ne[1], ne[2] }, mask, ne);
    } else {
        d.add_tensor(".dq_count", "DQ_COUNT", GGML_TYPE_I8, { n_blocks, ne[1], ne[2] }, count);
        d.add_tensor(".dq_column", "DQ_COLUMN", GGML_TYPE_I8, { n }, column);
    }
    d.add_tensor(".dq_start", "DQ_START", GGML_TYPE_I32, { ne[1], ne[2] }, bytes_of_all(start));
    const std::string halves = stored(r.values(n), type == GGML_TYPE_I8 ? GGML_TYPE_F16 : type, (int64_t) n);
    if (type != GGML_TYPE_I8) {
        d.add_tensor(".dq_entry", "DQ_ENTRY", type, { n }, halves);
        return;
    }
    std::string upper;
    for (size_t k = 1; k < halves.size(); k += 2) {
        upper += halves[k];
    }
    d.add_tensor(".dq_entry", "DQ_ENTRY", GGML_TYPE_I8, { n }, upper);
    d.add_tensor(".dq_escale", "DQ_ESCALE", GGML_TYPE_F32, { ne[1], ne[2] }, bytes_of_all(r.values(n_rows)));
}

// A delta of sparse weights of every kind, and a dense one. "lists": 520x24, F8; "mask": 64x24, BF16; "experts": 320x8x3, lists, F16.
inline delta_builder delta_of_sparse_weights() {
    delta_builder d(2);
    random_source r(3);
    add_sparse(d, "lists", { 520, 24 }, false, GGML_TYPE_I8, r);
    add_sparse(d, "mask", { 64, 24 }, true, GGML_TYPE_BF16, r);
    add_sparse(d, "experts", { 320, 8, 3 }, false, GGML_TYPE_F16, r);
    d.add_weight("norm", { 24 }, 0, 0);
    d.add_tensor(".dq_dense", "DQ_DENSE", GGML_TYPE_F32, { 24 }, bytes_of_all(r.values(24)));
    d.declare();
    return d;
}

} // namespace testing
