// plan.h: which rows of the op DQRELO use which entry, and where its work memory lies.
#pragma once

#include "entry.h"

#include "ggml.h"

#include <stddef.h>

namespace dqrelo_cpu {

// The sorted rows that use one matrix of one delta; where they are folded, with one request scale.
struct group_rows {
    int32_t delta;
    int32_t matrix;
    int64_t begin, end;
    bool    is_folded;  // The base's product is computed with the signs folded in.
    bool    is_decoded; // Sign factors are decoded (decoded-codes.h).
};

// Memory for the tables of rows (dqrelo_kernels::make_tables).
struct table_memory {
    uint8_t * data;
    int64_t   stride; // bytes of a row; 0 where there are none

    uint8_t * of(int64_t row) const { return stride > 0 ? data + row * stride : nullptr; }
};

struct work {
    // All threads share these. The first one is for the base's product; the others only the matmul forms have.
    uint8_t * base;
    size_t    n_base;
    float *   t; // [n_rows], rows of t_stride values
    int64_t   t_stride;
    float *   bx; // [n_rows] rows of bx_stride, for sign factors
    int64_t   bx_stride;
    float *   bx_step; // [n_rows] rows of dqrelo_i16_pieces(bx_stride) steps
    int16_t * x_i16;   // [rows of x] rows of dqrelo_i16_values(n_in), in ops with rows that may be folded or decoded
    float *   x_step;  // [rows of x] rows of dqrelo_i16_pieces(n_in)
    // Threads share these, too; where rows are few, every thread has its own and quantises all of them itself.
    bool         quantizes_all;
    int8_t *     q;      // [n_rows], rows of dqrelo_q_bytes(n_in), by sorted row
    dqrelo_act * act;    // [n_rows]
    table_memory tables; // [n_rows], of rows alone in their group; none where threads share these
    int8_t *     zq;     // [n_rows] rows of zq_stride, for sign factors
    int64_t      zq_stride;
    dqrelo_act * zact;    // [n_rows]
    table_memory ztables; // [n_rows]
    // Every thread has its own of these.
    uint64_t *       keys;   // [n_rows], for sorting only
    dqrelo_row *     rows;   // [n_rows], sorted by delta and matrix; those of the base alone are the last
    int32_t *        place;  // [n_rows], sorted place of each row of y
    group_rows *     groups; // [n_rows] at most
    int64_t          n_groups;
    int64_t          n_changed; // rows with a delta
    int64_t          n_early;   // features whose signs have been multiplied, of the only group
    dqrelo_scratch * scratch;
    float *          tile; // [DQRELO_FOLD_TILE], in ops with rows that may be folded or decoded
    float *          z;    // [DQRELO_MAX_CODES_A_SIDE * the smaller side] for sign factors
};

inline const dqrelo_entry * entry_of(const ggml_tensor * dst, int64_t delta) {
    return (const dqrelo_entry *) dst->src[2]->data + delta;
}

// Returns whether row r of y is in a group that is folded.
inline bool is_folded(const work & w, int64_t r) {
    return w.place[r] < w.n_changed && w.groups[w.rows[w.place[r]].group].is_folded;
}

inline bool is_matmul(const ggml_tensor * dst) {
    return ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL || ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL_ID;
}

// Rows of t are padded to whole cache lines, because different threads compute different ones.
inline int64_t padded_rank(int64_t rank) {
    return (rank + 15) / 16 * 16;
}

// Returns thread ith's view of the work memory, which has dqrelo_cpu_work_bytes.
work lay_out(const ggml_tensor * dst, int ith, int nth, void * memory, size_t n_bytes);

// Fills in the plan of w, which is rows, place and groups. Every thread makes its own copy, which costs less than a barrier.
void sort_rows(const ggml_tensor * dst, work & w);

// Sorts the rows of a MATMUL_ID op by matrix, after sort_rows: sets keys [n] to matrix * 2^32 + row of y, and returns n. Rows that are
// folded are left out, or come, with KEY_IS_FOLDED added, after the others of their matrix. 0 where all are folded.
static constexpr uint64_t KEY_IS_FOLDED = (uint64_t) 1 << 31;
int64_t                   sort_base_rows(const ggml_tensor * dst, bool with_folded, work & w);

} // namespace dqrelo_cpu
