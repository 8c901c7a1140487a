// entry.cpp: what one matrix of a delta adds to the rows that are multiplied with it: MATMUL and MATMUL_ID.

#include "entry.h"

#include "factor-types.h"
#include "prefetch.h"

void dqrelo_matmul_factor(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t r0, int64_t r1,
                          struct dqrelo_ahead then) {
    const struct dqrelo_entry * e = &g->e;
    for (int64_t t0 = 0; t0 < g->n_rows; t0 += DQRELO_TILE_T) {
        const int     n_t = (int) min_i64(DQRELO_TILE_T, g->n_rows - t0);
        const float * x[DQRELO_TILE_T];
        for (int t = 0; t < n_t; t++) {
            x[t] = g->rows[t0 + t].x;
        }
        const enum ggml_type type = (enum ggml_type) e->type_v;
        kernels->dots(type, row_of(e->v, e->type_v, r0, e->n_in), dqrelo_type_bytes(type, e->n_in), (int) (r1 - r0), x, n_t, e->n_in,
                      g->t + t0 * g->t_stride + r0, g->t_stride, &then);
    }
}

// Returns the room for the sums of plane p, where there are at most n.
static int32_t * sums_of(struct dqrelo_scratch * scratch, int p, int n) {
    return scratch->isum + (int64_t) p * (DQRELO_MAX_PLANES * DQRELO_TILE / n);
}

// Sets what some codes of B give to a tile of rows, from their sums of integers.
static void scale_codes(const struct dqrelo_group * g, int64_t t0, int n_t, const struct dqrelo_sign_tile & sums, int64_t ld) {
    for (int t = 0; t < n_t; t++) {
        const int32_t * isum = sums.out + t * ld;
        const float     d    = g->act[t0 + t].d;
        float *         bx   = g->bx + (t0 + t) * g->bx_stride + sums.row;
        for (int k = 0; k < sums.n_i; k++) {
            bx[k] = bf16_at(g->e.vscale, sums.row + k) * d * (float) isum[k];
        }
    }
}

void dqrelo_matmul_codes(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t c0, int64_t c1,
                         struct dqrelo_scratch * scratch) {
    const struct dqrelo_entry * e        = &g->e;
    const int64_t               q_stride = dqrelo_q_bytes(e->n_in);
    for (int64_t t0 = 0; t0 < g->n_rows; t0 += kernels->tile_t) {
        const int     n_t = (int) min_i64(kernels->tile_t, g->n_rows - t0);
        const int64_t n_i = n_t > 1 ? kernels->tile_i : DQRELO_ROW_TILE_I;
        for (int64_t c = c0; c < c1;) {
            struct dqrelo_ahead     nothing = {};
            struct dqrelo_sign_tile tiles[DQRELO_MAX_PLANES]; // Kernels may make tables of the rows for each call.
            int                     n = 0;
            for (; n < DQRELO_MAX_PLANES && c < c1; c += tiles[n++].n_i) {
                tiles[n] = { e->vsign + c * (e->n_in / 8),
                             (int) min_i64(n_i, c1 - c),
                             sums_of(scratch, n, DQRELO_MAX_PLANES),
                             e->transposed != 0,
                             c,
                             e->n_codes };
            }
            kernels->sign_dots(tiles, n, g->q + t0 * q_stride, q_stride, g->act + t0, n_t, e->n_in, n_i, &nothing);
            for (int k = 0; k < n; k++) {
                scale_codes(g, t0, n_t, tiles[k], n_i);
            }
        }
    }
}

void dqrelo_matmul_quantize(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t, float * z) {
    const struct dqrelo_entry * e    = &g->e;
    const float *               bx   = g->bx + t * g->bx_stride;
    int64_t                     code = 0;
    for (int p = 0; p < DQRELO_MAX_CODE_PLANES; code += e->plane_ranks[p++]) {
        for (int32_t k = 0; k < e->plane_ranks[p]; k++) {
            z[k] = p == 0 ? bx[k] : z[k] + bx[code + k];
        }
    }
    // Each plane has a multiple of the same values. Those themselves are in the place of the first plane's, which is the last one here.
    for (int p = DQRELO_MAX_CODE_PLANES - 1; p >= 0; p--) {
        code -= e->plane_ranks[p];
        for (int32_t k = 0; k < e->plane_ranks[p]; k++) {
            z[code + k] = bf16_at(e->uscale, code + k) * z[k];
        }
    }
    kernels->quantize_row(z, nullptr, e->n_codes, g->zq + t * g->zq_stride, g->zact + t);
}

namespace {

// A matrix of which each output is one row: dense rows, or those of U.
struct factor_rows {
    const void *   data; // NULL: the entry has neither.
    enum ggml_type type;
    int64_t        n_cols;

    const uint8_t * row(int64_t i) const { return row_of(data, type, i, n_cols); }
};

} // namespace

static struct factor_rows factor_rows_of(const struct dqrelo_entry * e) {
    if (e->dense) {
        return { e->dense, (enum ggml_type) e->type_dense, e->n_in };
    }
    return { e->u, (enum ggml_type) e->type_u, e->rank };
}

// Returns where the rows lie that features i0 to i1 - 1 are multiplied with beside signs.
static struct dqrelo_ahead factor_bytes(const struct dqrelo_entry * e, int64_t i0, int64_t i1) {
    const struct factor_rows a = factor_rows_of(e);
    return a.data ? dqrelo_ahead{ (uintptr_t) a.row(i0), (uintptr_t) a.row(i1) } : dqrelo_ahead{};
}

// The bytes at the beginning of a matrix that the products with it do not ask for ahead of their use.
static constexpr uintptr_t BEGIN_BYTES = prefetch_bytes(DQRELO_CACHE_2);

static struct dqrelo_ahead begin_of(struct dqrelo_ahead bytes) {
    return { bytes.next, bytes.end - bytes.next < BEGIN_BYTES ? bytes.end : bytes.next + BEGIN_BYTES };
}

static struct dqrelo_ahead rest_of(struct dqrelo_ahead bytes) {
    return { begin_of(bytes).end, bytes.end };
}

struct dqrelo_ahead dqrelo_factor_begin(const struct dqrelo_entry * e, int64_t r0, int64_t r1) {
    return begin_of({ (uintptr_t) row_of(e->v, e->type_v, r0, e->n_in), (uintptr_t) row_of(e->v, e->type_v, r1, e->n_in) });
}

struct dqrelo_ahead dqrelo_apply_begin(const struct dqrelo_entry * e, int64_t i0, int64_t i1) {
    if (dqrelo_entry_has_signs(e)) {
        const uint8_t * sign  = e->n_planes > 0 ? e->sign[0] : e->usign;
        const int64_t   bytes = (e->n_planes > 0 ? e->n_in : e->n_codes) / 8;
        return begin_of({ (uintptr_t) (sign + i0 * bytes), (uintptr_t) (sign + i1 * bytes) });
    }
    return begin_of(factor_bytes(e, i0, i1));
}

// Computes uv of a tile: U t, or dense x, or sparse x.
static void factor_out(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t0, int n_t, int64_t i0, int n_i,
                       int64_t ld, struct dqrelo_ahead * ahead, struct dqrelo_scratch * scratch) {
    const struct dqrelo_entry * e = &g->e;
    const float *               b[DQRELO_TILE_T];
    for (int t = 0; t < n_t; t++) {
        b[t] = e->dense || e->entries ? g->rows[t0 + t].x : g->t + (t0 + t) * g->t_stride;
    }
    if (e->entries) {
        dqrelo_sparse_dots(kernels, e, i0, n_i, b, n_t, scratch->uv, ld, scratch->sparse);
        return;
    }
    const struct factor_rows a = factor_rows_of(e);
    kernels->dots(a.type, a.row(i0), dqrelo_type_bytes(a.type, a.n_cols), n_i, b, n_t, a.n_cols, scratch->uv, ld, ahead);
}

static void ask_for(const float * values, int n) {
    for (uintptr_t next = (uintptr_t) values; next < (uintptr_t) (values + n); next += 64) {
        prefetch_lines<64>(next);
    }
}

// Asks for what is read after a tile's signs: the scales of its rows, and y, which may be in another core's cache. They are too few for
// memory to see what comes next.
static void ask_for_rest(const struct dqrelo_parts * parts, const struct dqrelo_row * rows, int n_t, int64_t i0, int n_i) {
    for (int p = 0; p < parts->n_planes; p++) {
        ask_for(parts->scale[p], n_i * parts->scale_step[p]);
    }
    for (int t = 0; t < n_t; t++) {
        ask_for(rows[t].y + i0, n_i);
    }
}

// The rows of U that are asked for while the signs of a tile are multiplied may take so much of the second cache.
static constexpr int64_t TILE_U_BYTES = 64 * 1024;

namespace {

// The part of a result that is computed at once: so many rows, and output features.
struct tile_size {
    int64_t n_t, n_i;
};

} // namespace

// Returns the tiles of a group. A row whose tables are not made once an op has them made for each, so features are many where there is but
// one row of x.
static struct tile_size tile_of(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g) {
    const struct dqrelo_entry * e = &g->e;
    if (g->n_rows > 1) {
        return dqrelo_entry_has_signs(e) ? tile_size{ kernels->tile_t, kernels->tile_i } : tile_size{ DQRELO_TILE_T, DQRELO_TILE_I };
    }
    const struct factor_rows a       = factor_rows_of(e);
    const int64_t            u_bytes = a.data ? dqrelo_type_bytes(a.type, a.n_cols) : 1;
    const int64_t            fit     = TILE_U_BYTES / u_bytes / DQRELO_TILE_I * DQRELO_TILE_I;
    return { 1, min_i64(DQRELO_ROW_TILE_I, fit > 0 ? fit : DQRELO_TILE_I) };
}

namespace {

// Which features' signs are multiplied for a tile, and where the sums lie of its first feature and of these, counted from the first of a
// plane's.
struct tile_signs {
    int64_t begin, end;
    int64_t sums, new_sums;
    int     n_planes; // Each has an equal part of the room for sums.
};

} // namespace

static void multiply_signs(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t0, int n_t,
                           const tile_signs & signs, int64_t ld, struct dqrelo_ahead * ahead, struct dqrelo_scratch * scratch) {
    const struct dqrelo_entry * e        = &g->e;
    const int64_t               q_stride = dqrelo_q_bytes(e->n_in);
    struct dqrelo_sign_tile     tiles[DQRELO_MAX_PLANES];
    for (int p = 0; p < e->n_planes; p++) {
        tiles[p] = { e->sign[p] + signs.begin * (e->n_in / 8),
                     (int) (signs.end - signs.begin),
                     sums_of(scratch, p, signs.n_planes) + signs.new_sums,
                     e->transposed != 0,
                     signs.begin,
                     e->n_out };
    }
    if (signs.begin < signs.end) {
        kernels->sign_dots(tiles, e->n_planes, g->q + t0 * q_stride, q_stride, g->act + t0, n_t, e->n_in, ld, ahead);
    }
}

// Rows of sums are `ld` apart. `then` is what is read after the tile.
static void apply_tile(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t t0, int n_t, int64_t i0, int n_i,
                       const tile_signs & signs, int64_t ld, struct dqrelo_ahead * then, struct dqrelo_scratch * scratch) {
    const struct dqrelo_entry * e        = &g->e;
    const int                   n_planes = e->dense ? 0 : e->n_planes;
    const bool                  has_uv   = e->dense || e->entries || e->rank > 0;

    struct dqrelo_ahead ahead = has_uv ? factor_bytes(e, i0, i0 + n_i) : dqrelo_ahead{};
    struct dqrelo_parts parts;
    parts.n_planes = n_planes;
    for (int p = 0; p < n_planes; p++) {
        parts.scale_step[p] = (e->scale_per_row >> p) & 1;
        parts.scale[p]      = e->scale[p] + i0 * parts.scale_step[p];
    }
    ask_for_rest(&parts, g->rows + t0, n_t, i0, n_i);
    if (n_planes > 0) {
        multiply_signs(kernels, g, t0, n_t, signs, ld, &ahead, scratch);
    }
    if (e->n_codes > 0) {
        const struct dqrelo_sign_tile tile = { e->usign + i0 * (e->n_codes / 8), n_i, scratch->zsum, e->transposed != 0, i0, e->n_out };
        kernels->sign_dots(&tile, 1, g->zq + t0 * g->zq_stride, g->zq_stride, g->zact + t0, n_t, e->n_codes, ld, &ahead);
    }
    if (has_uv) {
        factor_out(kernels, g, t0, n_t, i0, n_i, ld, then, scratch);
    }

    for (int t = 0; t < n_t; t++) {
        const struct dqrelo_row * row = g->rows + t0 + t;
        for (int p = 0; p < n_planes; p++) {
            parts.isum[p] = sums_of(scratch, p, signs.n_planes) + signs.sums + t * ld;
        }
        parts.uv   = has_uv ? scratch->uv + t * ld : nullptr;
        parts.zsum = e->n_codes > 0 ? scratch->zsum + t * ld : nullptr;
        parts.d    = n_planes > 0 ? g->act[t0 + t].d : 0.0f;
        parts.dz   = e->n_codes > 0 ? g->zact[t0 + t].d : 0.0f;
        parts.s    = row->s;
        kernels->add_delta(row->dst + i0, row->y + i0, n_i, &parts);
    }
}

//
// signs beside V
//

// Requests are made in lines, and signs are multiplied in blocks of 64 rows (avx2-tables.h) or fewer.
static constexpr int64_t EARLY_STEP = 64;

// A piece of V that is brought while signs are multiplied has 8 rows, which are multiplied at once, or more of short ones.
static constexpr int64_t EARLY_V_BYTES = 32 * 1024;

int64_t dqrelo_early_features(const struct dqrelo_group * g, int64_t n_i) {
    const struct dqrelo_entry * e = &g->e;
    if (g->n_rows != 1 || e->n_planes == 0 || e->n_codes > 0 || e->dense || n_i > DQRELO_MAX_PLANES * DQRELO_TILE / e->n_planes) {
        return 0;
    }
    const int64_t v_bytes = e->rank * dqrelo_type_bytes((enum ggml_type) e->type_v, e->n_in);
    const int64_t u_bytes = e->n_out * dqrelo_type_bytes((enum ggml_type) e->type_u, e->rank);
    return v_bytes == 0 ? 0 : n_i * v_bytes / (v_bytes + u_bytes) / EARLY_STEP * EARLY_STEP;
}

void dqrelo_matmul_factor_early(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t r0, int64_t r1, int64_t i0,
                                int64_t n_early, struct dqrelo_scratch * scratch) {
    const struct dqrelo_entry * e       = &g->e;
    const int64_t               v_bytes = dqrelo_type_bytes((enum ggml_type) e->type_v, e->n_in);
    const int64_t               n_r     = (EARLY_V_BYTES / (8 * v_bytes) + 1) * 8;
    const int64_t               n       = r0 < r1 ? (r1 - r0 + n_r - 1) / n_r : 1;
    for (int64_t k = 0; k < n; k++) {
        const int64_t       begin = n_early / EARLY_STEP * k / n * EARLY_STEP, end = n_early / EARLY_STEP * (k + 1) / n * EARLY_STEP;
        const int64_t       r = r0 + k * n_r, r_end = min_i64(r + n_r, r1);
        struct dqrelo_ahead v = { (uintptr_t) row_of(e->v, e->type_v, r, e->n_in), (uintptr_t) row_of(e->v, e->type_v, r_end, e->n_in) };
        multiply_signs(kernels, g, 0, 1, { i0 + begin, i0 + end, 0, begin, e->n_planes }, 0, &v, scratch);
        dqrelo_matmul_factor(kernels, g, r, r_end, {});
    }
}

// As dqrelo_matmul_apply. The signs of as many more features are multiplied for each tile as leaves equal work for all of them, and not
// fewer than it needs.
static void apply_after_early(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t i0, int64_t i1, int64_t n_early,
                              struct dqrelo_ahead then, struct dqrelo_scratch * scratch) {
    const int64_t       n_i     = tile_of(kernels, g).n_i;
    struct dqrelo_ahead nothing = {};
    int64_t             done    = i0 + n_early;
    for (int64_t i = i0; i < i1; i += n_i) {
        const int64_t end  = min_i64(i + n_i, i1);
        const int64_t part = (end - i0) * (i1 - i0 - n_early) / (i1 - i0);
        const int64_t next = min_i64(i0 + n_early + (part + EARLY_STEP - 1) / EARLY_STEP * EARLY_STEP, i1);
        apply_tile(kernels, g, 0, 1, i, (int) (end - i), { done, next, i - i0, done - i0, g->e.n_planes }, 0, end < i1 ? &nothing : &then,
                   scratch);
        done = next;
    }
}

void dqrelo_matmul_apply(const struct dqrelo_kernels * kernels, const struct dqrelo_group * g, int64_t i0, int64_t i1, int64_t n_early,
                         struct dqrelo_ahead then, struct dqrelo_scratch * scratch) {
    if (n_early > 0) {
        apply_after_early(kernels, g, i0, i1, n_early, then, scratch);
        return;
    }
    // Beside signs the rows of U are asked for while signs are multiplied.
    struct dqrelo_ahead    ahead = dqrelo_entry_has_signs(&g->e) ? dqrelo_ahead{} : rest_of(factor_bytes(&g->e, i0, i1));
    const struct tile_size tile  = tile_of(kernels, g);
    const auto             apply = [&](int64_t t0, int64_t i) {
        if (ahead.next >= ahead.end) {
            ahead = then;
            then  = {};
        }
        const int n_t = (int) min_i64(tile.n_t, g->n_rows - t0), n_i = (int) min_i64(tile.n_i, i1 - i);
        apply_tile(kernels, g, t0, n_t, i, n_i, { i, i + n_i, 0, 0, DQRELO_MAX_PLANES }, tile.n_i, &ahead, scratch);
    };
    // The larger part of what a tile reads is kept for the next one: its signs, a bit a column for each plane, or its rows of q, two bytes.
    if (tile.n_i * g->e.n_planes > 16 * tile.n_t && g->n_rows > 1) {
        for (int64_t i = i0; i < i1; i += tile.n_i) {
            for (int64_t t0 = 0; t0 < g->n_rows; t0 += tile.n_t) {
                apply(t0, i);
            }
        }
        return;
    }
    for (int64_t t0 = 0; t0 < g->n_rows; t0 += tile.n_t) {
        for (int64_t i = i0; i < i1; i += tile.n_i) {
            apply(t0, i);
        }
    }
}
