#include "plan.h"

#include "base-experts.h"
#include "base-product.h"
#include "decoded-codes.h"
#include "dqrelo-cpu.h"
#include "fold.h"

#include "ggml-impl.h"

#include <algorithm>

namespace dqrelo_cpu {

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

// So many rows take less time to quantise than to be fetched from the core that did it.
static constexpr int64_t QUANTIZED_BY_ALL = 2;

static int64_t count_deltas(const ggml_tensor * dst) {
    return dst->src[2]->ne[0] / (int64_t) sizeof(dqrelo_entry);
}

// Takes memory for quantised activations; `smaller` is the smaller side of the matrix.
static void take_quantized(const ggml_tensor * dst, int64_t smaller, arena & memory, work & w) {
    const int64_t n_rows = ggml_nrows(dst);
    w.q                  = memory.take<int8_t>(n_rows * dqrelo_q_bytes(dst->src[1]->ne[0]));
    w.act                = memory.take<dqrelo_act>(n_rows);
    w.zq                 = memory.take<int8_t>(n_rows * dqrelo_q_bytes(DQRELO_MAX_CODES_A_SIDE * smaller));
    w.zact               = memory.take<dqrelo_act>(n_rows);
}

// Takes memory for the tables of quantised activations of n columns in each row.
static table_memory take_tables(int64_t n_rows, int64_t n, arena & memory) {
    const dqrelo_kernels * kernels = dqrelo_cpu_kernels();
    const int64_t          n_bytes = kernels->tables_bytes ? kernels->tables_bytes(n) : 0;
    const int64_t          stride  = (n_bytes + (int64_t) ALIGNMENT - 1) / (int64_t) ALIGNMENT * (int64_t) ALIGNMENT;
    return { memory.take<uint8_t>(n_rows * stride), stride };
}

// Whether rows may be folded or decoded. Of a long sequence only the last rows may be here, those of its outputs.
static bool may_be_long(const ggml_tensor * dst) {
    return is_matmul(dst) && (ggml_dqrelo_base_weight(dst) || ggml_nrows(dst) >= DQRELO_FOLD_ROWS);
}

static work lay_out(const ggml_tensor * dst, int ith, int nth, arena & memory) {
    const int64_t n_rows  = ggml_nrows(dst);
    int64_t       smaller = 0;
    work          w       = {};
    if (ggml_dqrelo_base_weight(dst)) {
        const bool is_stack = ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL_ID;
        w.n_base            = is_stack ? base_experts_bytes(dst, nth) : dqrelo_base_product_bytes(dst, nth);
        w.base              = memory.take<uint8_t>((int64_t) w.n_base);
    }
    w.quantizes_all = n_rows <= QUANTIZED_BY_ALL;
    if (is_matmul(dst)) {
        // Ranks are not known when the work memory is planned (tables change between runs), so there is room for the largest ones.
        smaller            = std::min(dst->src[1]->ne[0], dst->ne[0]);
        const int64_t n_bx = padded_rank(DQRELO_MAX_CODES_A_SIDE * smaller);
        w.t                = memory.take<float>(n_rows * padded_rank(smaller));
        w.bx               = memory.take<float>(n_rows * n_bx);
        if (may_be_long(dst) && dqrelo_cpu_kernels()->products_i16) {
            const int64_t n_in = dst->src[1]->ne[0], n_x = ggml_nrows(dst->src[1]);
            w.bx_step = memory.take<float>(n_rows * dqrelo_i16_pieces(n_bx));
            w.x_i16   = memory.take<int16_t>(n_x * dqrelo_i16_values(n_in));
            w.x_step  = memory.take<float>(n_x * dqrelo_i16_pieces(n_in));
        }
        if (!w.quantizes_all) {
            take_quantized(dst, smaller, memory, w);
        }
    }
    for (int i = 0; i < nth; i++) {
        work own = w;
        if (is_matmul(dst) && w.quantizes_all) {
            take_quantized(dst, smaller, memory, own);
            own.tables  = take_tables(n_rows, dst->src[1]->ne[0], memory);
            own.ztables = take_tables(n_rows, DQRELO_MAX_CODES_A_SIDE * smaller, memory);
        }
        own.keys    = memory.take<uint64_t>(n_rows);
        own.rows    = memory.take<dqrelo_row>(n_rows);
        own.place   = memory.take<int32_t>(n_rows);
        own.groups  = memory.take<group_rows>(n_rows);
        own.scratch = memory.take<dqrelo_scratch>(1);
        own.tile    = memory.take<float>(may_be_long(dst) ? DQRELO_FOLD_TILE : 0);
        own.z       = memory.take<float>(DQRELO_MAX_CODES_A_SIDE * smaller);
        if (i == ith) {
            w = own;
        }
    }
    return w;
}

work lay_out(const ggml_tensor * dst, int ith, int nth, void * memory, size_t n_bytes) {
    uint8_t * base = (uint8_t *) (((uintptr_t) memory + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    arena     all  = { base };
    work      w    = lay_out(dst, ith, nth, all);
    GGML_ASSERT(base + all.n_bytes <= (uint8_t *) memory + n_bytes);
    return w;
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

namespace {

// How a row is computed. Rows of one group are computed alike.
struct way {
    bool  is_folded  = false;
    bool  is_decoded = false;
    float scale      = 0.0f; // the request scale, where it is folded
};

// The ways of an op's rows, in the order in which they are met. The first one is plain, which is also that of one way too many.
struct ways {
    static constexpr int MAX = 256; // Each belongs to some sequence of DQRELO_FOLD_ROWS tokens.

    way list[MAX];
    int n = 1;

    int number_of(const way & wanted) {
        for (int i = 0; i < n; i++) {
            if (list[i].is_folded == wanted.is_folded && list[i].is_decoded == wanted.is_decoded && list[i].scale == wanted.scale) {
                return i;
            }
        }
        if (n == MAX) {
            return 0;
        }
        list[n] = wanted;
        return n++;
    }
};

} // namespace

// The sort key of a row is made of delta, matrix, the number of its way, and the row itself, so that equal ones stay in order. An op that
// does not compute the base's product has two ways.
//
//   bit   48       32             24 or 31    0
//         delta    matrix         way         row
static constexpr uint64_t KEY_BASE = UINT64_C(0xffff) << 48;

static int row_bits(const ggml_tensor * dst) {
    return ggml_dqrelo_base_weight(dst) ? 24 : 31;
}

static int64_t row_of(const ggml_tensor * dst, uint64_t key) {
    return (int64_t) (key & ((UINT64_C(1) << row_bits(dst)) - 1));
}

// To decode sign factors costs as much as to multiply them with a dozen rows, so experts need as many rows each as other matrices.
static constexpr int64_t DECODE_EXPERT_ROWS = DQRELO_FOLD_ROWS;

// Matrices that are broadcast (heads) have too few rows each for anything but the plain way.
static way way_of(const ggml_tensor * dst, const float * token, const dqrelo_entry * e) {
    way w;
    if (may_be_long(dst) && (e->n_mat == 1 || ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL_ID)) {
        const int64_t n_used = dst->ne[1];
        w.is_folded          = ggml_dqrelo_base_weight(dst) && dqrelo_entry_folds(e) &&
                               ggml_dqrelo_is_long(token[0], ggml_dqrelo_long_tokens(DQRELO_FOLD_EXPERT_ROWS, e->n_mat, n_used));
        w.is_decoded =
            dqrelo_entry_decodes(e) && ggml_dqrelo_is_long(token[0], ggml_dqrelo_long_tokens(DECODE_EXPERT_ROWS, e->n_mat, n_used));
        w.scale = w.is_folded ? token[1] : 0.0f;
    }
    return w;
}

static uint64_t key_of(const ggml_tensor * dst, int64_t row, ways & known) {
    const position at    = position_of(dst, row);
    const float *  token = token_of(dst, at);
    const int64_t  delta = (int64_t) token[0];
    GGML_ASSERT(delta < count_deltas(dst) && delta < 0xffff);
    if (delta < 0 || token[1] == 0.0f || dqrelo_entry_is_empty(entry_of(dst, delta))) {
        return KEY_BASE | (uint64_t) row;
    }
    const dqrelo_entry * e      = entry_of(dst, delta);
    const int64_t        matrix = matrix_of(dst, e, at);
    const uint64_t       number = (uint64_t) known.number_of(way_of(dst, token, e));
    GGML_ASSERT(matrix >= 0 && matrix < std::min<int64_t>(e->n_mat, 0x10000));
    return (uint64_t) delta << 48 | (uint64_t) matrix << 32 | number << row_bits(dst) | (uint64_t) row;
}

static char * row_data(const ggml_tensor * t, const position & at) {
    return (char *) t->data + at.i1 % t->ne[1] * t->nb[1] + at.i2 * t->nb[2] + at.i3 * t->nb[3];
}

// Returns the number of the row of x that a row of y is made from; experts may share one.
static int64_t row_of_x(const ggml_tensor * dst, const position & at) {
    const int64_t * ne = dst->src[1]->ne;
    return at.i1 % ne[1] + (at.i2 + at.i3 * ne[2]) * ne[1];
}

static dqrelo_row make_row(const ggml_tensor * dst, const work & w, uint64_t key, int32_t group) {
    const position    at   = position_of(dst, row_of(dst, key));
    const dqrelo_form form = ggml_dqrelo_form(dst);
    dqrelo_row        row  = {};
    row.dst                = (float *) row_data(dst, at);
    row.y                  = dst->src[0] ? (const float *) row_data(dst->src[0], at) : row.dst;
    row.s                  = token_of(dst, at)[1];
    row.group              = group;
    if (is_matmul(dst) || form == DQRELO_FORM_MUL) {
        row.x = (const float *) row_data(dst->src[1], at);
    }
    if (w.x_i16) {
        const int64_t n_in = dst->src[1]->ne[0], number = row_of_x(dst, at);
        row.x_i16  = w.x_i16 + number * dqrelo_i16_values(n_in);
        row.x_step = w.x_step + number * dqrelo_i16_pieces(n_in);
    }
    if (key < KEY_BASE && !is_matmul(dst)) {
        row.id = row_id(dst, entry_of(dst, (int64_t) (key >> 48)), at);
    }
    return row;
}

// Returns the group, still empty, whose first row in order is r.
static group_rows make_group(const ggml_tensor * dst, uint64_t key, int64_t r, const ways & known) {
    const way & own   = known.list[(key & UINT32_MAX) >> row_bits(dst)];
    group_rows  group = {};
    group.delta       = (int32_t) (key >> 48);
    group.matrix      = (int32_t) (key >> 32 & 0xffff);
    group.begin       = r;
    group.end         = r;
    group.is_folded   = own.is_folded;
    group.is_decoded  = own.is_decoded;
    return group;
}

void sort_rows(const ggml_tensor * dst, work & w) {
    const int64_t n_rows = ggml_nrows(dst);
    GGML_ASSERT(n_rows <= INT32_MAX);
    ways known;
    for (int64_t r = 0; r < n_rows; r++) {
        w.keys[r] = key_of(dst, r, known);
    }
    std::sort(w.keys, w.keys + n_rows);
    const int bits = row_bits(dst);

    w.n_groups  = 0;
    w.n_changed = 0;
    w.n_early   = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        const uint64_t key = w.keys[r];
        if (key < KEY_BASE) {
            if (r == 0 || key >> bits != w.keys[r - 1] >> bits) {
                w.groups[w.n_groups++] = make_group(dst, key, r, known);
            }
            w.groups[w.n_groups - 1].end = ++w.n_changed;
        }
        w.rows[r]                 = make_row(dst, w, key, (int32_t) w.n_groups - 1);
        w.place[row_of(dst, key)] = (int32_t) r;
    }
}

int64_t sort_base_rows(const ggml_tensor * dst, bool with_folded, work & w) {
    const int64_t n_mat  = ggml_dqrelo_base_weight(dst)->ne[2];
    int64_t       n      = 0;
    bool          is_any = false;
    for (int64_t r = 0; r < ggml_nrows(dst); r++) {
        const bool folds = is_folded(w, r);
        is_any           = is_any || !folds;
        if (!folds || with_folded) {
            const int64_t matrix = std::clamp<int64_t>(id_of(dst->src[4], position_of(dst, r)), 0, n_mat - 1);
            w.keys[n++]          = (uint64_t) matrix << 32 | (folds ? KEY_IS_FOLDED : 0) | (uint64_t) r;
        }
    }
    std::sort(w.keys, w.keys + n);
    return is_any ? n : 0;
}

} // namespace dqrelo_cpu

size_t dqrelo_cpu_work_bytes(const struct ggml_tensor * dst, int n_threads) {
    dqrelo_cpu::arena memory = { nullptr };
    dqrelo_cpu::lay_out(dst, 0, n_threads, memory);
    return memory.n_bytes + dqrelo_cpu::ALIGNMENT; // The work memory itself may be aligned to less.
}
