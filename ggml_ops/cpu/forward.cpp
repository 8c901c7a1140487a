// forward.cpp: the op DQRELO on ggml's CPU threads: which rows use which entry, who does what, and where work memory lies.

#include "dqrelo-cpu.h"
#include "dqrelo-op.h"

#include "base-product.h"
#include "entry.h"
#include "fold.h"
#include "kernels.h"
#include "stack.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstring>

static constexpr size_t ALIGNMENT = 64; // bytes of a cache line, and of a block of q

// Bump allocation over the work memory; with a null base it only counts.
struct arena {
    uint8_t * base;
    size_t    n_bytes = 0;

    template <typename T>
    T * take(int64_t n) {
        uint8_t * p = base + n_bytes;
        n_bytes += (n * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        return base ? (T *) p : nullptr;
    }
};

// The sorted rows that use one matrix of one delta; where they are folded, with one request scale.
struct group_rows {
    int32_t delta;
    int32_t matrix;
    int64_t begin, end;
    bool    is_folded; // The base's product is computed with the signs folded in.
};

struct work {
    // All threads share these. The first one is for ggml's product of the base; the others only the matmul forms have.
    uint8_t *    base;
    size_t       n_base;
    int8_t *     q;   // [n_rows], rows of dqrelo_q_bytes(n_in), by sorted row
    dqrelo_act * act; // [n_rows]
    float *      t;   // [n_rows], rows of t_stride values
    int64_t      t_stride;
    float *      bx; // [n_rows] rows of bx_stride, as the next two for sign factors
    int64_t      bx_stride;
    int8_t *     zq; // [n_rows] rows of zq_stride
    int64_t      zq_stride;
    dqrelo_act * zact; // [n_rows]
    // Every thread has its own of these.
    uint64_t *       keys;   // [n_rows], for sorting only
    dqrelo_row *     rows;   // [n_rows], sorted by delta and matrix; those of the base alone are the last
    int32_t *        place;  // [n_rows], sorted place of each row of y
    group_rows *     groups; // [n_rows] at most
    int64_t          n_groups;
    int64_t          n_changed; // rows with a delta
    dqrelo_scratch * scratch;
    float *          tile; // [DQRELO_FOLD_TILE], in ops that compute the base's product
    float *          z;    // [DQRELO_MAX_CODES_A_SIDE * the smaller side] for sign factors
};

static int64_t count_deltas(const ggml_tensor * dst) {
    return dst->src[2]->ne[0] / (int64_t) sizeof(dqrelo_entry);
}

static const dqrelo_entry * entry_of(const ggml_tensor * dst, int64_t delta) {
    return (const dqrelo_entry *) dst->src[2]->data + delta;
}

static bool is_matmul(const ggml_tensor * dst) {
    return ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL || ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL_ID;
}

// Ranks are padded to whole cache lines, because different threads compute different ones.
static int64_t padded_rank(int64_t rank) {
    return (rank + 15) / 16 * 16;
}

static work lay_out(const ggml_tensor * dst, int ith, int nth, arena & memory) {
    const int64_t n_rows  = ggml_nrows(dst);
    int64_t       smaller = 0;
    work          w       = {};
    if (ggml_dqrelo_base_weight(dst)) {
        w.n_base = dqrelo_base_product_bytes(dst, nth);
        w.base   = memory.take<uint8_t>((int64_t) w.n_base);
    }
    if (is_matmul(dst)) {
        const int64_t n_in = dst->src[1]->ne[0];
        w.q                = memory.take<int8_t>(n_rows * dqrelo_q_bytes(n_in));
        w.act              = memory.take<dqrelo_act>(n_rows);
        // Ranks are not known when the work memory is planned (tables change between runs), so there is room for the largest ones.
        smaller = std::min(n_in, dst->ne[0]);
        w.t     = memory.take<float>(n_rows * padded_rank(smaller));
        w.bx    = memory.take<float>(n_rows * padded_rank(smaller));
        w.zq    = memory.take<int8_t>(n_rows * dqrelo_q_bytes(DQRELO_MAX_CODES_A_SIDE * smaller));
        w.zact  = memory.take<dqrelo_act>(n_rows);
    }
    for (int i = 0; i < nth; i++) {
        work own    = w;
        own.keys    = memory.take<uint64_t>(n_rows);
        own.rows    = memory.take<dqrelo_row>(n_rows);
        own.place   = memory.take<int32_t>(n_rows);
        own.groups  = memory.take<group_rows>(n_rows);
        own.scratch = memory.take<dqrelo_scratch>(1);
        own.tile    = memory.take<float>(ggml_dqrelo_base_weight(dst) ? DQRELO_FOLD_TILE : 0);
        own.z       = memory.take<float>(DQRELO_MAX_CODES_A_SIDE * smaller);
        if (i == ith) {
            w = own;
        }
    }
    return w;
}

size_t dqrelo_cpu_work_bytes(const struct ggml_tensor * dst, int n_threads) {
    arena memory = { nullptr };
    lay_out(dst, 0, n_threads, memory);
    return memory.n_bytes + ALIGNMENT; // The work memory itself may be aligned to less.
}

// The place of a row of y on y's axes 1 to 3.
struct position {
    int64_t i1, i2, i3;
};

static position position_of(const ggml_tensor * dst, int64_t row) {
    return { row % dst->ne[1], row / dst->ne[1] % dst->ne[2], row / (dst->ne[1] * dst->ne[2]) };
}

// {delta index or -1, request scale} of a row's token.
static const float * token_of(const ggml_tensor * dst, const position & at) {
    const int32_t * stride = ggml_dqrelo_stride(dst);
    return (const float *) dst->src[3]->data + 2 * (at.i1 * stride[0] + at.i2 * stride[1] + at.i3 * stride[2]);
}

static int32_t id_of(const ggml_tensor * ids, const position & at) {
    return *(const int32_t *) ((const char *) ids->data + at.i1 * ids->nb[0] + at.i2 * ids->nb[1] + at.i3 * ids->nb[2]);
}

// Returns which matrix of a stack a row is multiplied with. Ids come from the graph (of a router that met NaN they may be anything), so
// they are kept in their range: such a row's result means nothing, but nothing else is read.
static int64_t matrix_of(const ggml_tensor * dst, const dqrelo_entry * e, const position & at) {
    switch (ggml_dqrelo_form(dst)) {
        case DQRELO_FORM_MATMUL_ID: return std::clamp<int64_t>(id_of(dst->src[4], at), 0, e->n_mat - 1);
        case DQRELO_FORM_MATMUL: return at.i2 / (dst->ne[2] / e->n_mat);
        default: return 0;
    }
}

// Returns which row of D_hat a row takes, in the forms that are no matmul.
static int64_t row_id(const ggml_tensor * dst, const dqrelo_entry * e, const position & at) {
    const int64_t id = dst->src[4] ? id_of(dst->src[4], at) : at.i1 % e->n_out + at.i2 % e->n_mat * e->n_out;
    return std::clamp<int64_t>(id, 0, e->n_out * e->n_mat - 1);
}

// The request scales of the rows that are folded, in the order in which they are met.
struct fold_scales {
    static constexpr int MAX = 255; // Each belongs to some sequence of DQRELO_FOLD_ROWS tokens; more sequences are not folded.

    float scale[MAX];
    int   n = 0;

    // Returns a scale's number, or -1 for one too many.
    int number_of(float s) {
        const int i = (int) (std::find(scale, scale + n, s) - scale);
        if (i == n && n < MAX) {
            scale[n++] = s;
        }
        return i < MAX ? i : -1;
    }
};

// The sort key of a row is made of delta, matrix and the row itself, so that equal ones stay in order. Of a folded row, whose weight is no
// stack, it has the number of the request scale, from 1 on, instead of the matrix.
static constexpr uint64_t KEY_BASE = UINT64_C(0xffff) << 48;

static uint64_t key_of(const ggml_tensor * dst, int64_t row, fold_scales & scales) {
    const position at    = position_of(dst, row);
    const float *  token = token_of(dst, at);
    const int64_t  delta = (int64_t) token[0];
    GGML_ASSERT(delta < count_deltas(dst) && delta < 0xffff);
    if (delta < 0 || token[1] == 0.0f || dqrelo_entry_is_empty(entry_of(dst, delta))) {
        return KEY_BASE | (uint64_t) row;
    }
    if (ggml_dqrelo_base_weight(dst)) {
        const bool folds = token[0] != (float) delta && dqrelo_entry_folds(entry_of(dst, delta));
        return (uint64_t) delta << 48 | (uint64_t) (folds ? scales.number_of(token[1]) + 1 : 0) << 32 | (uint64_t) row;
    }
    const int64_t matrix = matrix_of(dst, entry_of(dst, delta), at);
    GGML_ASSERT(matrix >= 0 && matrix < std::min<int64_t>(entry_of(dst, delta)->n_mat, 0x10000));
    return (uint64_t) delta << 48 | (uint64_t) matrix << 32 | (uint64_t) row;
}

static char * row_data(const ggml_tensor * t, const position & at) {
    return (char *) t->data + at.i1 % t->ne[1] * t->nb[1] + at.i2 * t->nb[2] + at.i3 * t->nb[3];
}

static dqrelo_row make_row(const ggml_tensor * dst, uint64_t key, int32_t group) {
    const position    at   = position_of(dst, (int64_t) (key & UINT32_MAX));
    const dqrelo_form form = ggml_dqrelo_form(dst);
    dqrelo_row        row  = {};
    row.dst                = (float *) row_data(dst, at);
    row.y                  = dst->src[0] ? (const float *) row_data(dst->src[0], at) : row.dst;
    row.s                  = token_of(dst, at)[1];
    row.group              = group;
    if (key >= KEY_BASE) {
        return row;
    }
    if (is_matmul(dst) || form == DQRELO_FORM_MUL) {
        row.x = (const float *) row_data(dst->src[1], at);
    }
    if (!is_matmul(dst)) {
        row.id = row_id(dst, entry_of(dst, (int64_t) (key >> 48)), at);
    }
    return row;
}

// Fills in the plan of w, which is rows, place and groups. Every thread makes its own copy, which costs less than a barrier.
static void sort_rows(const ggml_tensor * dst, work & w) {
    const int64_t n_rows = ggml_nrows(dst);
    GGML_ASSERT(n_rows <= INT32_MAX);
    fold_scales scales;
    for (int64_t r = 0; r < n_rows; r++) {
        w.keys[r] = key_of(dst, r, scales);
    }
    std::sort(w.keys, w.keys + n_rows);

    w.n_groups  = 0;
    w.n_changed = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        const uint64_t key = w.keys[r];
        if (key < KEY_BASE) {
            if (r == 0 || key >> 32 != w.keys[r - 1] >> 32) {
                const int32_t matrix   = (int32_t) (key >> 32 & 0xffff);
                const bool    folds    = ggml_dqrelo_base_weight(dst) != nullptr;
                w.groups[w.n_groups++] = { (int32_t) (key >> 48), folds ? 0 : matrix, r, r, folds && matrix > 0 };
            }
            w.groups[w.n_groups - 1].end = ++w.n_changed;
        }
        w.rows[r]                 = make_row(dst, key, (int32_t) w.n_groups - 1);
        w.place[key & UINT32_MAX] = (int32_t) r;
    }
}

static void copy_rows(const ggml_tensor * dst, const work & w, int64_t i0, int64_t i1) {
    const int64_t n_rows = ggml_nrows(dst);
    for (int64_t r = w.n_changed; r < n_rows; r++) {
        if (w.rows[r].dst != w.rows[r].y) {
            memcpy(w.rows[r].dst + i0, w.rows[r].y + i0, (i1 - i0) * sizeof(float));
        }
    }
}

//
// matmul forms
//

// Returns the matrix of a group, or what is left of it to be added after the fold.
static dqrelo_entry entry_of_group(const ggml_tensor * dst, const group_rows & rows) {
    dqrelo_entry e = dqrelo_entry_matrix(entry_of(dst, rows.delta), rows.matrix);
    if (rows.is_folded) {
        e.n_planes = 0;
        e.dense    = nullptr;
    }
    return e;
}

static dqrelo_group group_of(const ggml_tensor * dst, const work & w, int64_t i) {
    const group_rows & rows = w.groups[i];
    dqrelo_group       g;
    g.e         = entry_of_group(dst, rows);
    g.rows      = w.rows + rows.begin;
    g.n_rows    = rows.end - rows.begin;
    g.q         = w.q + rows.begin * dqrelo_q_bytes(dst->src[1]->ne[0]);
    g.act       = w.act + rows.begin;
    g.t         = w.t + rows.begin * w.t_stride;
    g.t_stride  = w.t_stride;
    g.bx        = w.bx + rows.begin * w.bx_stride;
    g.bx_stride = w.bx_stride;
    g.zq        = w.zq + rows.begin * w.zq_stride;
    g.zq_stride = w.zq_stride;
    g.zact      = w.zact + rows.begin;
    return g;
}

// A thread's share of the work. The work of all groups lies in a line, of which each thread takes an equal part; a group is made of pieces
// of equal cost. Groups may have one row or hundreds, one piece or hundreds: all threads are busy either way.
struct share {
    int64_t begin, end;
    int64_t at = 0;

    share(int64_t total, int ith, int nth) : begin(total * ith / nth), end(total * (ith + 1) / nth) {}

    // Sets which of the next group's pieces are this thread's: *p0 to *p1 - 1, maybe none.
    void take(int64_t n_pieces, int64_t cost, int64_t * p0, int64_t * p1) {
        *p0 = std::clamp<int64_t>((begin - at + cost - 1) / cost, 0, n_pieces);
        *p1 = std::clamp<int64_t>((end - at + cost - 1) / cost, 0, n_pieces);
        at += n_pieces * cost;
    }
};

// A piece is LINE rows of the matrix, which make a cache line of the result. To read them costs about as much as to multiply them with one
// row of x.
static constexpr int64_t LINE = 16;

static int64_t cost_of(const dqrelo_group & g) {
    return 1 + g.n_rows;
}

// The same for a piece of the result. Where the base's product is a part of it, a row costs about four times as much, and to make the tile
// as much as some rows.
static int64_t cost_of_result(const dqrelo_group & g, bool is_folded) {
    return is_folded ? 4 * (8 + g.n_rows) : cost_of(g);
}

static int64_t count_lines(int64_t n) {
    return (n + LINE - 1) / LINE;
}

static int64_t rank_lines(const dqrelo_group & g) {
    return g.e.dense ? 0 : count_lines(g.e.rank);
}

// Quantises each row of x once, though several experts read it; only a column scale makes rows of their own for each expert.
static void quantize(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t q_bytes = dqrelo_q_bytes(dst->src[1]->ne[0]);
    const int64_t n_share = dst->ne[1] / dst->src[1]->ne[1]; // Counts the rows of y that are made from one row of x.
    const int64_t n_x     = ggml_nrows(dst) / n_share;
    for (int64_t i = params->ith; i < n_x; i += params->nth) {
        int64_t done = -1;
        for (int64_t r = i * n_share; r < (i + 1) * n_share; r++) {
            const int64_t place = w.place[r];
            if (place >= w.n_changed) {
                continue;
            }
            const group_rows &   group = w.groups[w.rows[place].group];
            const dqrelo_entry * e     = entry_of(dst, group.delta);
            if (!dqrelo_entry_has_signs(e) || (group.is_folded && e->n_codes == 0)) {
                continue;
            }
            if (done >= 0 && !e->cscale) {
                memcpy(w.q + place * q_bytes, w.q + done * q_bytes, (size_t) q_bytes);
                w.act[place] = w.act[done];
                continue;
            }
            const float * cscale = e->cscale ? e->cscale + group.matrix * e->n_in : nullptr;
            dqrelo_cpu_kernels()->quantize_row(w.rows[place].x, cscale, e->n_in, w.q + place * q_bytes, w.act + place);
            done = place;
        }
    }
}

// What the groups need before the last step.
struct needs {
    bool    any       = false; // whether one is not dense
    int64_t rank      = 0;     // the largest ones
    int64_t code_rank = 0;
    int64_t n_codes   = 0;
};

static needs needs_of(const ggml_tensor * dst, const work & w) {
    needs n;
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_entry * e       = entry_of(dst, w.groups[i].delta);
        const int64_t        smaller = std::min(e->n_in, e->n_out);
        GGML_ASSERT(e->n_in == dst->src[1]->ne[0] && e->n_out == dst->ne[0] && e->rank <= smaller && e->n_planes <= DQRELO_MAX_PLANES);
        GGML_ASSERT(e->plane_ranks[0] <= smaller && e->n_codes <= DQRELO_MAX_CODES_A_SIDE * smaller);
        n.any       = n.any || e->rank > 0 || dqrelo_entry_has_signs(e);
        n.rank      = std::max<int64_t>(n.rank, e->rank);
        n.code_rank = std::max<int64_t>(n.code_rank, e->plane_ranks[0]);
        n.n_codes   = std::max<int64_t>(n.n_codes, e->n_codes);
    }
    return n;
}

// Computes this thread's share of V x.
static void multiply_factors(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    int64_t total = 0;
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_group g = group_of(dst, w, i);
        total += rank_lines(g) * cost_of(g);
    }
    // The first threads may have quantised one row more, so this begins with the last.
    share mine(total, params->nth - 1 - params->ith, params->nth);
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_group g = group_of(dst, w, i);
        int64_t            l0, l1;
        mine.take(rank_lines(g), cost_of(g), &l0, &l1);
        if (l0 < l1) {
            dqrelo_matmul_factor(dqrelo_cpu_kernels(), &g, l0 * LINE, std::min<int64_t>(l1 * LINE, g.e.rank));
        }
    }
}

// Calls f with the pieces of B that have one plane, two, ..., at their beginnings: from piece l0 to before piece l1, each at a cost.
template <typename F>
static void for_each_plane_count(const dqrelo_group & g, F && f) {
    int64_t l0 = 0;
    for (int p = DQRELO_MAX_CODE_PLANES - 1; p >= 0; p--) {
        const int64_t l1 = count_lines(g.e.plane_ranks[p]);
        if (l0 < l1) {
            f(l0, l1, (p + 1) * cost_of(g));
        }
        l0 = l1;
    }
}

// Computes this thread's share of B (c . x): a row of it in all of its planes.
static void multiply_codes(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    int64_t total = 0;
    for (int64_t i = 0; i < w.n_groups; i++) {
        for_each_plane_count(group_of(dst, w, i), [&](int64_t l0, int64_t l1, int64_t cost) { total += (l1 - l0) * cost; });
    }
    share mine(total, params->ith, params->nth);
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_group g = group_of(dst, w, i);
        for_each_plane_count(g, [&](int64_t l0, int64_t l1, int64_t cost) {
            int64_t m0, m1;
            mine.take(l1 - l0, cost, &m0, &m1);
            if (m0 < m1) {
                dqrelo_matmul_codes(dqrelo_cpu_kernels(), &g, (l0 + m0) * LINE, std::min<int64_t>((l0 + m1) * LINE, g.e.plane_ranks[0]),
                                    w.scratch);
            }
        });
    }
}

// Quantises this thread's share of what B gave.
static void quantize_codes(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    for (int64_t r = params->ith; r < w.n_changed; r += params->nth) {
        const dqrelo_group g = group_of(dst, w, w.rows[r].group);
        if (g.e.n_codes > 0) {
            dqrelo_matmul_quantize(dqrelo_cpu_kernels(), &g, r - w.groups[w.rows[r].group].begin, w.z);
        }
    }
}

static void prepare_matmul(const ggml_compute_params * params, const ggml_tensor * dst, work & w) {
    const needs n = needs_of(dst, w);
    w.t_stride    = padded_rank(n.rank);
    w.bx_stride   = padded_rank(n.code_rank);
    w.zq_stride   = dqrelo_q_bytes(n.n_codes);
    if (n.any) {
        quantize(params, dst, w);
        multiply_factors(params, dst, w);
        ggml_barrier(params->threadpool);
    }
    if (n.n_codes > 0) {
        multiply_codes(params, dst, w);
        ggml_barrier(params->threadpool);
        quantize_codes(params, dst, w);
        ggml_barrier(params->threadpool);
    }
}

//
// the base's product
//

// Computes the base's product of all rows that are in no folded group, neighbours together. A row that has no such neighbour is computed
// with one that is folded afterwards: for a single row ggml has other instructions, with another order of sums, and then a row's result
// would depend on whether its neighbours are folded.
static void multiply_base(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t n_rows    = ggml_nrows(dst);
    const auto    is_folded = [&](int64_t r) { return w.place[r] < w.n_changed && w.groups[w.rows[w.place[r]].group].is_folded; };
    for (int64_t begin = 0, end; begin < n_rows; begin = end) {
        for (end = begin + 1; end < n_rows && is_folded(end) == is_folded(begin);) {
            end++;
        }
        if (!is_folded(begin)) {
            const bool    is_alone = end - begin == 1 && n_rows > 1;
            const int64_t first    = is_alone && end == n_rows ? begin - 1 : begin;
            dqrelo_base_product(params, dst, first, is_alone ? 2 : end - begin, w.base, w.n_base);
            ggml_barrier(params->threadpool);
        }
    }
}

static dqrelo_base base_of(const ggml_tensor * weight) {
    const ggml_type_traits * traits = ggml_get_type_traits(weight->type);
    GGML_ASSERT(DQRELO_FOLD_COLUMNS % traits->blck_size == 0);
    dqrelo_base base;
    base.data         = (const uint8_t *) weight->data;
    base.row_bytes    = (int64_t) weight->nb[1];
    base.type         = weight->type;
    base.block_values = traits->blck_size;
    base.block_bytes  = (int64_t) traits->type_size;
    base.to_float     = traits->to_float;
    return base;
}

// Computes output features i0 to i1 - 1 of group i.
static void apply_group(const ggml_tensor * dst, const work & w, int64_t i, int64_t i0, int64_t i1) {
    const dqrelo_group rest = group_of(dst, w, i);
    if (w.groups[i].is_folded) {
        const dqrelo_base base  = base_of(ggml_dqrelo_base_weight(dst));
        dqrelo_group      whole = rest;
        whole.e                 = dqrelo_entry_matrix(entry_of(dst, w.groups[i].delta), w.groups[i].matrix);
        dqrelo_fold_apply(dqrelo_cpu_kernels(), &base, &whole, rest.rows[0].s, i0, i1, w.tile);
        if (dqrelo_entry_is_empty(&rest.e)) {
            return;
        }
    }
    dqrelo_matmul_apply(dqrelo_cpu_kernels(), &rest, i0, i1, w.scratch);
}

static void forward_matmul(const ggml_compute_params * params, const ggml_tensor * dst, work & w) {
    if (ggml_dqrelo_base_weight(dst)) {
        multiply_base(params, dst, w);
    }
    prepare_matmul(params, dst, w);
    const int64_t n_out   = dst->ne[0];
    const int64_t n_lines = count_lines(n_out);
    int64_t       total   = 0;
    for (int64_t i = 0; i < w.n_groups; i++) {
        total += n_lines * cost_of_result(group_of(dst, w, i), w.groups[i].is_folded);
    }
    share mine(total, params->ith, params->nth);
    for (int64_t i = 0; i < w.n_groups; i++) {
        int64_t l0, l1;
        mine.take(n_lines, cost_of_result(group_of(dst, w, i), w.groups[i].is_folded), &l0, &l1);
        if (l0 < l1) {
            apply_group(dst, w, i, l0 * LINE, std::min(l1 * LINE, n_out));
        }
    }
    copy_rows(dst, w, std::min(n_out, n_lines * params->ith / params->nth * LINE),
              std::min(n_out, n_lines * (params->ith + 1) / params->nth * LINE));
}

//
// the others
//

static void forward_rows(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t n_tiles = (dst->ne[0] + DQRELO_TILE_J - 1) / DQRELO_TILE_J;
    const int64_t j0      = std::min(dst->ne[0], n_tiles * params->ith / params->nth * DQRELO_TILE_J);
    const int64_t j1      = std::min(dst->ne[0], n_tiles * (params->ith + 1) / params->nth * DQRELO_TILE_J);
    for (int64_t r = 0; r < w.n_changed; r++) {
        const dqrelo_entry * e = entry_of(dst, w.groups[w.rows[r].group].delta);
        GGML_ASSERT(e->n_in == dst->ne[0]);
        dqrelo_rows_apply(dqrelo_cpu_kernels(), e, &w.rows[r], j0, j1);
    }
    copy_rows(dst, w, j0, j1);
}

static void forward_elementwise(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    for (int64_t r = params->ith; r < w.n_changed; r += params->nth) {
        const dqrelo_entry * e = entry_of(dst, w.groups[w.rows[r].group].delta);
        GGML_ASSERT(dst->ne[0] % e->n_in == 0);
        dqrelo_elementwise_apply(dqrelo_cpu_kernels(), ggml_dqrelo_form(dst), e, &w.rows[r], dst->ne[0]);
    }
    copy_rows(dst, w, dst->ne[0] * params->ith / params->nth, dst->ne[0] * (params->ith + 1) / params->nth);
}

void dqrelo_cpu_forward(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    uint8_t * base   = (uint8_t *) (((uintptr_t) params->wdata + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    arena     memory = { base };
    work      w      = lay_out(dst, params->ith, params->nth, memory);
    GGML_ASSERT(base + memory.n_bytes <= (uint8_t *) params->wdata + params->wsize);
    sort_rows(dst, w);

    switch (ggml_dqrelo_form(dst)) {
        case DQRELO_FORM_MATMUL:
        case DQRELO_FORM_MATMUL_ID: forward_matmul(params, dst, w); break;
        case DQRELO_FORM_ROWS: forward_rows(params, dst, w); break;
        case DQRELO_FORM_MUL:
        case DQRELO_FORM_ADD: forward_elementwise(params, dst, w); break;
    }
}

const char * dqrelo_cpu_isa(void) {
    return dqrelo_cpu_kernels()->name;
}
