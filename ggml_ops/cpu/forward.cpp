// forward.cpp: the op DQRELO on ggml's CPU threads: who does what.

#include "dqrelo-cpu.h"
#include "dqrelo-op.h"

#include "base-experts.h"
#include "base-product.h"
#include "decoded-codes.h"
#include "entry.h"
#include "fold.h"
#include "kernels.h"
#include "plan.h"
#include "repacked.h"
#include "share.h"
#include "stack.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstring>

using namespace dqrelo_cpu;

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

static dqrelo_entry matrix_of_group(const ggml_tensor * dst, const group_rows & rows) {
    return dqrelo_entry_matrix(entry_of(dst, rows.delta), rows.matrix);
}

// Returns what is left of a group's matrix beside what is folded or decoded.
static dqrelo_entry rest_of_group(const ggml_tensor * dst, const group_rows & rows) {
    dqrelo_entry e = matrix_of_group(dst, rows);
    if (rows.is_folded) {
        e.n_planes = 0;
        e.dense    = nullptr;
        e.entries  = nullptr;
    }
    if (rows.is_decoded) {
        e.n_codes = 0;
    }
    return e;
}

// Whether the group's sign factors are decoded, and multiplied as integers.
static bool decodes_i16(const ggml_tensor * dst, const group_rows & rows) {
    const ggml_tensor * weight = ggml_dqrelo_base_weight(dst);
    return rows.is_decoded && weight && dqrelo_decoded_is_i16(dqrelo_cpu_kernels(), weight->type);
}

static dqrelo_group group_of(const ggml_tensor * dst, const work & w, int64_t i, const dqrelo_entry & e) {
    const group_rows & rows = w.groups[i];
    dqrelo_group       g;
    g.e         = e;
    g.rows      = w.rows + rows.begin;
    g.n_rows    = rows.end - rows.begin;
    g.q         = w.q + rows.begin * dqrelo_q_bytes(dst->src[1]->ne[0]);
    g.act       = w.act + rows.begin;
    g.t         = w.t + rows.begin * w.t_stride;
    g.t_stride  = w.t_stride;
    g.bx        = w.bx + rows.begin * w.bx_stride;
    g.bx_stride = w.bx_stride;
    g.bx_step   = decodes_i16(dst, rows) ? w.bx_step + rows.begin * dqrelo_i16_pieces(w.bx_stride) : nullptr;
    g.zq        = w.zq + rows.begin * w.zq_stride;
    g.zq_stride = w.zq_stride;
    g.zact      = w.zact + rows.begin;
    return g;
}

static dqrelo_group whole_group(const ggml_tensor * dst, const work & w, int64_t i) {
    return group_of(dst, w, i, matrix_of_group(dst, w.groups[i]));
}

static dqrelo_group rest_group(const ggml_tensor * dst, const work & w, int64_t i) {
    return group_of(dst, w, i, rest_of_group(dst, w.groups[i]));
}

// To read a piece of a matrix (share.h) costs about as much as to multiply it with one row of x. To make a sparse one costs as much as to
// multiply it with SPARSE_COST rows.
static constexpr int64_t SPARSE_COST = 8;

static int64_t cost_of(const dqrelo_group & g) {
    return (g.e.entries ? SPARSE_COST : 1) + g.n_rows;
}

// The same for a piece of the result. Where the base's product is a part of it, a row costs about four times as much, and to make the tile
// as much as some rows.
static int64_t cost_of_result(const dqrelo_group & g, bool is_folded) {
    return is_folded ? 4 * (8 + g.n_rows) : cost_of(g);
}

// Returns how many rows V has. A piece of V is one of them: with eight together, one thread of two had 56 of 102.
static int64_t count_ranks(const dqrelo_group & g) {
    return g.e.dense ? 0 : g.e.rank;
}

namespace {

// From the first row on, one in `step`.
struct strided_rows {
    int64_t first, step;
};

} // namespace

// Returns which rows a thread quantises.
static strided_rows quantized_by(const ggml_compute_params * params, const work & w) {
    return w.quantizes_all ? strided_rows{ 0, 1 } : strided_rows{ params->ith, params->nth };
}

// To make tables of a row takes as long as to multiply it with 26 rows of signs (AVX2) or 60 (AVX-512 VBMI).
static constexpr int64_t MIN_TABLE_FEATURES = 128;

// Makes tables of a row of n quantised values that lies alone in its group, where the thread multiplies it with enough rows of signs.
static void make_tables(const ggml_compute_params * params, const group_rows & group, int64_t n_signs, const int8_t * q, int64_t n,
                        uint8_t * tables, dqrelo_act * act) {
    if (tables && group.end - group.begin == 1 && n_signs >= MIN_TABLE_FEATURES * params->nth) {
        dqrelo_cpu_kernels()->make_tables(q, n, tables, act);
    }
}

// Quantises each row of x once, though several experts read it; only a column scale makes rows of their own for each expert.
static void quantize(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t      q_bytes = dqrelo_q_bytes(dst->src[1]->ne[0]);
    const int64_t      n_share = dst->ne[1] / dst->src[1]->ne[1]; // Counts the rows of y that are made from one row of x.
    const int64_t      n_x     = ggml_nrows(dst) / n_share;
    const strided_rows mine    = quantized_by(params, w);
    for (int64_t i = mine.first; i < n_x; i += mine.step) {
        int64_t done = -1;
        for (int64_t r = i * n_share; r < (i + 1) * n_share; r++) {
            const int64_t place = w.place[r];
            if (place >= w.n_changed) {
                continue;
            }
            const dqrelo_entry e = rest_of_group(dst, w.groups[w.rows[place].group]);
            if (!dqrelo_entry_has_signs(&e)) {
                continue;
            }
            if (done >= 0 && !e.cscale) {
                memcpy(w.q + place * q_bytes, w.q + done * q_bytes, (size_t) q_bytes);
                w.act[place] = w.act[done];
                continue;
            }
            dqrelo_cpu_kernels()->quantize_row(w.rows[place].x, e.cscale, e.n_in, w.q + place * q_bytes, w.act + place);
            make_tables(params, w.groups[w.rows[place].group], e.n_planes * e.n_out + e.n_codes, w.q + place * q_bytes, e.n_in,
                        w.tables.of(place), w.act + place);
            done = place;
        }
    }
}

// Whether rows of the group are multiplied as integers of 16 bits.
static bool reads_i16(const ggml_tensor * dst, const group_rows & rows) {
    const ggml_tensor * weight = ggml_dqrelo_base_weight(dst);
    return decodes_i16(dst, rows) || (rows.is_folded && dqrelo_fold_is_i16(dqrelo_cpu_kernels(), weight->type));
}

// Makes integers of 16 bits of this thread's share of the rows of x, each once.
static void quantize_i16(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t n_in    = dst->src[1]->ne[0];
    const int64_t n_share = dst->ne[1] / dst->src[1]->ne[1];
    for (int64_t i = params->ith; i < ggml_nrows(dst->src[1]); i += params->nth) {
        for (int64_t r = i * n_share; r < (i + 1) * n_share; r++) {
            const int64_t place = w.place[r];
            if (place >= w.n_changed || !reads_i16(dst, w.groups[w.rows[place].group])) {
                continue;
            }
            const float * x = w.rows[place].x;
            for (int64_t p = 0; p < dqrelo_i16_pieces(n_in); p++) {
                const int64_t j0 = p * DQRELO_I16_COLUMNS;
                dqrelo_cpu_kernels()->quantize_i16(x + j0, std::min<int64_t>(DQRELO_I16_COLUMNS, n_in - j0),
                                                   w.x_i16 + i * dqrelo_i16_values(n_in) + j0, w.x_step + i * dqrelo_i16_pieces(n_in) + p);
            }
            break;
        }
    }
}

// What the groups need before the last step.
struct needs {
    bool    any       = false; // whether one is neither dense nor sparse
    bool    i16       = false; // whether one reads integers of 16 bits
    bool    decoded   = false; // whether one makes those of what B gives
    int64_t rank      = 0;     // the largest ones
    int64_t code_rank = 0;
    int64_t n_codes   = 0; // of those that are not decoded
};

static needs needs_of(const ggml_tensor * dst, const work & w) {
    needs n;
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_entry * e       = entry_of(dst, w.groups[i].delta);
        const int64_t        smaller = std::min(e->n_in, e->n_out);
        GGML_ASSERT(e->n_in == dst->src[1]->ne[0] && e->n_out == dst->ne[0] && e->rank <= smaller && e->n_planes <= DQRELO_MAX_PLANES);
        GGML_ASSERT(e->plane_ranks[0] <= smaller && e->n_codes <= DQRELO_MAX_CODES_A_SIDE * smaller);
        n.any       = n.any || e->rank > 0 || dqrelo_entry_has_signs(e);
        n.i16       = n.i16 || reads_i16(dst, w.groups[i]);
        n.decoded   = n.decoded || decodes_i16(dst, w.groups[i]);
        n.rank      = std::max<int64_t>(n.rank, e->rank);
        n.code_rank = std::max<int64_t>(n.code_rank, e->plane_ranks[0]);
        n.n_codes   = std::max<int64_t>(n.n_codes, w.groups[i].is_decoded ? 0 : e->n_codes);
    }
    return n;
}

// What a thread computes of one group: rows of V, or output features. Empty: nothing is left.
struct piece {
    int64_t group = 0, begin = 0, end = 0;

    bool is_empty() const { return begin >= end; }
};

// Returns the thread's next piece. take(i) takes its share of group i.
template <typename F>
static piece next_piece(const work & w, int64_t & i, F && take) {
    while (i < w.n_groups) {
        const piece p = take(i++);
        if (!p.is_empty()) {
            return p;
        }
    }
    return {};
}

// Calls f(piece, next piece) for all of the thread's pieces.
template <typename F, typename G>
static void for_each_piece(const work & w, F && take, G && f) {
    int64_t i = 0;
    for (piece p = next_piece(w, i, take), next; !p.is_empty(); p = next) {
        next = next_piece(w, i, take);
        f(p, next);
    }
}

static share share_of_result(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    int64_t total = 0;
    for (int64_t i = 0; i < w.n_groups; i++) {
        total += count_lines(dst->ne[0]) * cost_of_result(rest_group(dst, w, i), w.groups[i].is_folded);
    }
    return share(total, params->ith, params->nth);
}

static piece take_result(const ggml_tensor * dst, const work & w, share & mine, int64_t i) {
    int64_t l0, l1;
    mine.take(count_lines(dst->ne[0]), cost_of_result(rest_group(dst, w, i), w.groups[i].is_folded), &l0, &l1);
    return { i, l0 * LINE, std::min(l1 * LINE, dst->ne[0]) };
}

// Returns what is read first for a piece of the result.
static dqrelo_ahead begin_of_result(const ggml_tensor * dst, const work & w, const piece & p) {
    if (p.is_empty() || w.groups[p.group].is_folded) {
        return {};
    }
    const dqrelo_entry e = rest_of_group(dst, w.groups[p.group]);
    return dqrelo_apply_begin(&e, p.begin, p.end);
}

// Returns the features of this thread whose signs it multiplies beside V: of a single row, which it has quantised itself.
static piece early_result(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    if (!dqrelo_cpu_kernels()->multiplies_early || w.n_changed != 1 || !w.quantizes_all) {
        return {};
    }
    const dqrelo_group g      = rest_group(dst, w, 0);
    share              result = share_of_result(params, dst, w);
    const piece        own    = take_result(dst, w, result, 0);
    return { 0, own.begin, own.begin + dqrelo_early_features(&g, own.end - own.begin) };
}

// Computes this thread's share of V x.
static void multiply_factors(const ggml_compute_params * params, const ggml_tensor * dst, work & w) {
    int64_t total = 0;
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_group g = rest_group(dst, w, i);
        total += count_ranks(g) * cost_of(g);
    }
    // The first threads may have quantised one row more, so this begins with the last.
    share      mine(total, params->nth - 1 - params->ith, params->nth);
    const auto take = [&](int64_t i) {
        const dqrelo_group g = rest_group(dst, w, i);
        int64_t            p0, p1;
        mine.take(count_ranks(g), cost_of(g), &p0, &p1);
        return piece{ i, p0, p1 };
    };
    const piece early = early_result(params, dst, w);
    if (!early.is_empty()) {
        const dqrelo_group g   = rest_group(dst, w, early.group);
        const piece        own = take(early.group);
        w.n_early              = early.end - early.begin;
        dqrelo_matmul_factor_early(dqrelo_cpu_kernels(), &g, own.begin, own.end, early.begin, w.n_early, w.scratch);
        return;
    }
    for_each_piece(w, take, [&](const piece & p, const piece & next) {
        dqrelo_ahead then;
        if (next.is_empty()) {
            share   result = share_of_result(params, dst, w);
            int64_t i      = 0;
            then           = begin_of_result(dst, w, next_piece(w, i, [&](int64_t k) { return take_result(dst, w, result, k); }));
        } else {
            const dqrelo_entry e = rest_of_group(dst, w.groups[next.group]);
            then                 = dqrelo_factor_begin(&e, next.begin, next.end);
        }
        const dqrelo_group g = rest_group(dst, w, p.group);
        dqrelo_matmul_factor(dqrelo_cpu_kernels(), &g, p.begin, p.end, then);
    });
}

// Returns how many pieces of B there are: of rows that are decoded, or of their codes.
static int64_t count_code_lines(const dqrelo_group & g, bool is_decoded) {
    return count_lines(is_decoded ? g.e.plane_ranks[0] : g.e.n_codes);
}

// Computes this thread's share of B (c . x).
static void multiply_codes(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    int64_t total = 0;
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_group g = whole_group(dst, w, i);
        total += count_code_lines(g, w.groups[i].is_decoded) * cost_of(g);
    }
    share mine(total, params->ith, params->nth);
    for (int64_t i = 0; i < w.n_groups; i++) {
        const dqrelo_group g          = whole_group(dst, w, i);
        const bool         is_decoded = w.groups[i].is_decoded;
        int64_t            l0, l1;
        mine.take(count_code_lines(g, is_decoded), cost_of(g), &l0, &l1);
        if (l0 < l1 && is_decoded) {
            dqrelo_decoded_codes(dqrelo_cpu_kernels(), &g, l0 * LINE, std::min<int64_t>(l1 * LINE, g.e.plane_ranks[0]), w.tile);
        } else if (l0 < l1) {
            dqrelo_matmul_codes(dqrelo_cpu_kernels(), &g, l0 * LINE, std::min<int64_t>(l1 * LINE, g.e.n_codes), w.scratch);
        }
    }
}

// Quantises this thread's share of what B gave.
static void quantize_codes(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const strided_rows mine = quantized_by(params, w);
    for (int64_t r = mine.first; r < w.n_changed; r += mine.step) {
        const dqrelo_group g = rest_group(dst, w, w.rows[r].group);
        if (g.e.n_codes > 0) {
            const group_rows & group = w.groups[w.rows[r].group];
            dqrelo_matmul_quantize(dqrelo_cpu_kernels(), &g, r - group.begin, w.z);
            make_tables(params, group, g.e.n_out, w.zq + r * w.zq_stride, g.e.n_codes, w.ztables.of(r), w.zact + r);
        }
    }
}

// Makes integers of this thread's share of what decoded rows of B gave. All threads read them.
static void quantize_decoded(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    for (int64_t r = params->ith; r < w.n_changed; r += params->nth) {
        const int64_t i = w.rows[r].group;
        if (w.groups[i].is_decoded) {
            const dqrelo_group g = whole_group(dst, w, i);
            dqrelo_decoded_quantize(dqrelo_cpu_kernels(), &g, r - w.groups[i].begin);
        }
    }
}

static void prepare_matmul(const ggml_compute_params * params, const ggml_tensor * dst, work & w) {
    const needs n = needs_of(dst, w);
    w.t_stride    = padded_rank(n.rank);
    w.bx_stride   = padded_rank(std::max(n.code_rank, n.n_codes));
    w.zq_stride   = dqrelo_q_bytes(n.n_codes);
    if (n.i16) {
        quantize_i16(params, dst, w);
    }
    if (n.any) {
        quantize(params, dst, w);
        multiply_factors(params, dst, w);
    }
    if (n.i16 || (n.any && (!w.quantizes_all || n.rank > 0))) {
        ggml_barrier(params->threadpool);
    }
    if (n.code_rank > 0) {
        multiply_codes(params, dst, w);
        ggml_barrier(params->threadpool);
    }
    if (n.n_codes > 0) {
        quantize_codes(params, dst, w);
    }
    if (n.decoded) {
        quantize_decoded(params, dst, w);
    }
    if (n.decoded || (n.n_codes > 0 && !w.quantizes_all)) {
        ggml_barrier(params->threadpool);
    }
}

//
// the base's product
//

// Returns how many rows of x ggml multiplies in one way, counted from the first. Of K- and I-quants it has other instructions for fewer
// than eight rows, and of repacked weights for what sixteens and fours leave over.
static int64_t rows_of_a_unit(const ggml_tensor * weight) {
    return dqrelo_is_repacked(weight) || ggml_blck_size(weight->type) == 256 ? 16 : 1;
}

// Computes the base's product of all rows that are in no folded group, neighbours together, in whole units. Other instructions have other
// orders of sums, and then a row's result would depend on whether its neighbours are folded; so what is too short for its own, a single row
// or the rest of a unit, is computed with rows that are folded afterwards.
static void multiply_base(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t n_rows  = ggml_nrows(dst);
    const int64_t n_unit  = rows_of_a_unit(ggml_dqrelo_base_weight(dst));
    const int64_t n_least = std::min(std::max<int64_t>(n_unit, 2), n_rows);
    const auto    needs   = [&](int64_t r) { // whether a unit has a row that is not folded
        for (int64_t k = r; k < std::min(r + n_unit, n_rows); k++) {
            if (!is_folded(w, k)) {
                return true;
            }
        }
        return false;
    };
    for (int64_t begin = 0, end; begin < n_rows; begin = end) {
        const bool is_needed = needs(begin);
        for (end = begin + n_unit; end < n_rows && needs(end) == is_needed;) {
            end += n_unit;
        }
        end = std::min(end, n_rows);
        if (is_needed) {
            const int64_t first = std::min(begin, n_rows - n_least) / n_unit * n_unit;
            dqrelo_base_product(params, dst, first, std::max(end, first + n_least) - first, w.base, w.n_base);
            ggml_barrier(params->threadpool);
        }
    }
}

static dqrelo_base base_of(const ggml_tensor * weight, int64_t matrix) {
    const ggml_type_traits * traits = ggml_get_type_traits(weight->type);
    GGML_ASSERT(DQRELO_FOLD_COLUMNS % traits->blck_size == 0);
    dqrelo_base base;
    base.data         = (const uint8_t *) weight->data + matrix * weight->nb[2];
    base.row_bytes    = (int64_t) weight->nb[1];
    base.type         = weight->type;
    base.block_values = traits->blck_size;
    base.block_bytes  = (int64_t) traits->type_size;
    base.to_float     = traits->to_float;
    base.restore      = dqrelo_is_repacked(weight) ? dqrelo_restore_blocks : nullptr;
    return base;
}

// Computes a piece of the result. `then` is what the thread reads afterwards.
static void apply_piece(const ggml_tensor * dst, const work & w, const piece & p, dqrelo_ahead then) {
    const group_rows & rows = w.groups[p.group];
    const dqrelo_group rest = rest_group(dst, w, p.group);
    if (rows.is_folded) {
        const dqrelo_base  base  = base_of(ggml_dqrelo_base_weight(dst), rows.matrix);
        const dqrelo_group whole = whole_group(dst, w, p.group);
        dqrelo_fold_apply(dqrelo_cpu_kernels(), &base, &whole, rest.rows[0].s, p.begin, p.end, w.tile);
    }
    // Where the op computes the base's product, this is the result already.
    if (!ggml_dqrelo_base_weight(dst) || !dqrelo_entry_is_empty(&rest.e)) {
        dqrelo_matmul_apply(dqrelo_cpu_kernels(), &rest, p.begin, p.end, w.n_early, then, w.scratch);
    }
    if (rows.is_decoded) {
        const dqrelo_group whole = whole_group(dst, w, p.group);
        dqrelo_decoded_apply(dqrelo_cpu_kernels(), &whole, p.begin, p.end, w.tile);
    }
}

static void forward_matmul(const ggml_compute_params * params, const ggml_tensor * dst, work & w) {
    if (ggml_dqrelo_base_weight(dst)) {
        ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL_ID ? multiply_base_experts(params, dst, w) : multiply_base(params, dst, w);
    }
    prepare_matmul(params, dst, w);
    share mine = share_of_result(params, dst, w);
    for_each_piece(
        w, [&](int64_t i) { return take_result(dst, w, mine, i); },
        [&](const piece & p, const piece & next) { apply_piece(dst, w, p, begin_of_result(dst, w, next)); });
    const int64_t n_out   = dst->ne[0];
    const int64_t n_lines = count_lines(n_out);
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
    work w = lay_out(dst, params->ith, params->nth, params->wdata, params->wsize);
    sort_rows(dst, w);

    switch (ggml_dqrelo_form(dst)) {
        case DQRELO_FORM_MATMUL:
        case DQRELO_FORM_MATMUL_ID: forward_matmul(params, dst, w); break;
        case DQRELO_FORM_ROWS: forward_rows(params, dst, w); break;
        case DQRELO_FORM_MUL:
        case DQRELO_FORM_ADD: forward_elementwise(params, dst, w); break;
    }
}
