#include "base-experts.h"

#include "base-product.h"
#include "dqrelo-op.h"
#include "share.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "repacked.h"

namespace dqrelo_cpu {

namespace {

// ggml multiplies experts in tiles (base-product.h) from TILED_LEAST rows of one on; test-op-fold would tell if that changed. TILED_ROWS go
// into a tile.
constexpr int64_t TILED_LEAST = 8;
constexpr int64_t TILED_ROWS  = 256;

const ggml_type_traits_cpu * traits_of(const ggml_tensor * dst) {
    return ggml_get_type_traits_cpu(ggml_dqrelo_base_weight(dst)->type);
}

// Returns the bytes of a row of x in the type that W is multiplied with, or 0 if that is F32 as x is.
size_t row_bytes(const ggml_tensor * dst) {
    const ggml_type type = traits_of(dst)->vec_dot_type;
    return type == GGML_TYPE_F32 ? 0 : ggml_row_size(type, dst->src[1]->ne[0]);
}

// How many rows of y are made from one row of x.
int64_t rows_a_x(const ggml_tensor * dst) {
    return dst->ne[1] / dst->src[1]->ne[1];
}

// Converts this thread's share of the rows of x, each once, though several experts read it.
void convert_rows(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const size_t n_bytes = row_bytes(dst);
    if (n_bytes == 0) {
        return;
    }
    const ggml_from_float_t from_float = ggml_get_type_traits_cpu(traits_of(dst)->vec_dot_type)->from_float;
    const int64_t           n_share    = rows_a_x(dst);
    const int64_t           n_x        = ggml_nrows(dst) / n_share;
    for (int64_t i = params->ith; i < n_x; i += params->nth) {
        for (int64_t r = i * n_share; r < (i + 1) * n_share; r++) {
            if (!is_folded(w, r)) {
                from_float(w.rows[w.place[r]].x, w.base + i * n_bytes, dst->src[1]->ne[0]);
                break;
            }
        }
    }
}

// Computes output features i0 to i1 - 1 of the rows of one matrix: its rows of W, LINE at a time, meet all rows of x.
void multiply(const ggml_tensor * dst, const work & w, const uint64_t * keys, int64_t n_keys, int64_t i0, int64_t i1) {
    const ggml_tensor *  weight      = ggml_dqrelo_base_weight(dst);
    const bool           is_repacked = dqrelo_is_repacked(weight);
    const ggml_vec_dot_t vec_dot     = traits_of(dst)->vec_dot;
    const size_t         n_bytes     = row_bytes(dst);
    const char *         matrix      = (const char *) weight->data + (keys[0] >> 32) * weight->nb[2];
    for (; i0 < i1; i0 += LINE) {
        for (int64_t k = 0; k < n_keys; k++) {
            const int64_t      r   = (int64_t) (keys[k] & UINT32_MAX);
            const dqrelo_row & row = w.rows[w.place[r]];
            const void *       x   = n_bytes == 0 ? (const void *) row.x : w.base + r / rows_a_x(dst) * n_bytes;
            const int64_t      end = std::min(i0 + LINE, i1);
            if (is_repacked) {
                dqrelo_repacked_product(weight->type, matrix + i0 * weight->nb[1], end - i0, x, weight->ne[0], row.dst + i0);
                continue;
            }
            for (int64_t i = i0; i < end; i++) {
                vec_dot((int) weight->ne[0], row.dst + i, 0, matrix + i * weight->nb[1], 0, x, 0, 1);
            }
        }
    }
}

// Calls f with the first key of each matrix, and how many it has.
template <typename F>
void for_each_matrix(const work & w, int64_t n_keys, F && f) {
    for (int64_t begin = 0, end; begin < n_keys; begin = end) {
        for (end = begin + 1; end < n_keys && w.keys[end] >> 32 == w.keys[begin] >> 32;) {
            end++;
        }
        f(w.keys + begin, end - begin);
    }
}

// Returns the bytes of all rows of x in the type that W is multiplied with. What else there is of work memory lies behind them.
size_t x_bytes(const ggml_tensor * dst) {
    return GGML_PAD(row_bytes(dst) * (size_t) (ggml_nrows(dst) / rows_a_x(dst)), 64);
}

// Computes the rows of one matrix that are not folded, n_base of n, as ggml does where an expert has n rows: in tiles. Returns false where
// it multiplies so few one by one.
bool multiply_in_tiles(const ggml_compute_params * params, const ggml_tensor * dst, const work & w, const uint64_t * keys, int64_t n_base,
                       int64_t n) {
    for (int64_t k = 0; k < n_base; k += TILED_ROWS) {
        // Where ggml would have had more rows beside these, they are named again, up to the number from which on it has tiles.
        const int64_t n_own = std::min(TILED_ROWS, n_base - k);
        const int64_t n_all = std::max(n_own, std::min(n, TILED_LEAST));
        int32_t       rows[TILED_ROWS][2];
        for (int64_t i = 0; i < n_all; i++) {
            const int64_t r = (int64_t) (keys[k + std::min(i, n_own - 1)] & UINT32_MAX);
            rows[i][0]      = (int32_t) (r % dst->ne[1]);
            rows[i][1]      = (int32_t) (r / dst->ne[1]);
        }
        if (!dqrelo_tiled_experts(params, dst, (int64_t) (keys[0] >> 32), rows, n_all, w.base, w.base + x_bytes(dst))) {
            return false;
        }
    }
    return true;
}

} // namespace

size_t base_experts_bytes(const ggml_tensor * dst, int n_threads) {
    return x_bytes(dst) + dqrelo_tiled_experts_bytes(dst, n_threads);
}

void multiply_base_experts(const ggml_compute_params * params, const ggml_tensor * dst, work & w) {
    const bool has_tiles = dqrelo_tiled_experts_bytes(dst, params->nth) > 0;
    int64_t    n_keys    = sort_base_rows(dst, has_tiles, w);
    if (n_keys == 0) {
        return;
    }
    convert_rows(params, dst, w);
    ggml_barrier(params->threadpool);
    if (has_tiles) {
        const int64_t n_all = n_keys;
        n_keys              = 0;
        for_each_matrix(w, n_all, [&](const uint64_t * keys, int64_t n) {
            const int64_t n_base = std::count_if(keys, keys + n, [](uint64_t key) { return (key & KEY_IS_FOLDED) == 0; });
            if (!multiply_in_tiles(params, dst, w, keys, n_base, n)) {
                std::copy(keys, keys + n_base, w.keys + n_keys);
                n_keys += n_base;
            }
        });
    }
    const int64_t n_out   = dst->ne[0];
    const int64_t n_lines = count_lines(n_out);
    int64_t       total   = 0;
    for_each_matrix(w, n_keys, [&](const uint64_t *, int64_t n) { total += n_lines * (1 + n); });
    share mine(total, params->ith, params->nth);
    for_each_matrix(w, n_keys, [&](const uint64_t * keys, int64_t n) {
        int64_t l0, l1;
        mine.take(n_lines, 1 + n, &l0, &l1);
        if (l0 < l1) {
            multiply(dst, w, keys, n, l0 * LINE, std::min(l1 * LINE, n_out));
        }
    });
    ggml_barrier(params->threadpool);
}

} // namespace dqrelo_cpu
