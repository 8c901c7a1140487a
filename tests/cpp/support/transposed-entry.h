// transposed-entry.h: an entry whose signs lie as the loader of deltas leaves them on a CPU whose kernels take them transposed.
#pragma once

#include "random-matrix.h"

#include "cpu/transposed-signs.h"
#include "dqrelo-op.h"
#include "ggml.h"

#include <memory>
#include <vector>

// Owns the signs that its entry points to: do not copy.
struct transposed_entry {
    dqrelo_entry e;
    bytes        sign[DQRELO_MAX_PLANES], vsign, usign;

    explicit transposed_entry(const dqrelo_entry & plain) : e(plain) {
        for (int p = 0; p < e.n_planes; p++) {
            take(sign[p], e.sign[p], e.n_out * (e.n_in / 8));
        }
        if (e.n_codes > 0) {
            take(vsign, e.vsign, e.n_codes * (e.n_in / 8));
            take(usign, e.usign, e.n_out * (e.n_codes / 8));
        }
        dqrelo_transpose_entry(&e);
    }
    transposed_entry(const transposed_entry &)             = delete;
    transposed_entry & operator=(const transposed_entry &) = delete;

private:
    // Takes a copy of the signs of all matrices, which have n_bytes each.
    void take(bytes & own, const uint8_t *& signs, int64_t n_bytes) {
        own.assign(signs, signs + e.n_mat * n_bytes);
        signs = own.data();
    }
};

// Transposes the signs of all entries in the table of an op's node. They point to what is returned then.
inline std::vector<std::unique_ptr<transposed_entry>> transpose_table(ggml_tensor * node) {
    std::vector<std::unique_ptr<transposed_entry>> own;
    dqrelo_entry * const                           table = (dqrelo_entry *) node->src[2]->data;
    for (size_t k = 0; k < (size_t) node->src[2]->ne[0] / sizeof(dqrelo_entry); k++) {
        own.push_back(std::make_unique<transposed_entry>(table[k]));
        table[k] = own.back()->e;
    }
    return own;
}
