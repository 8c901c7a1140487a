// forward.cpp: the op DQRELO on ggml's CPU threads: which rows use which entry, who does what, and where work memory lies.

#include "dqrelo-cpu.h"
#include "dqrelo-op.h"

#include "entry.h"
#include "kernels.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstring>

static constexpr size_t ALIGNMENT = 64; // bytes: a cache line, and a block of q

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

struct work {
    // shared by all threads; MATMUL only
    int8_t *     q;   // [n_rows] rows of dqrelo_q_bytes(n_in)
    dqrelo_act * act; // [n_rows]
    float *      t;   // [n_rows] rows of t_stride
    int64_t      t_stride;
    // one a thread
    dqrelo_row *     rows;  // [n_rows] sorted by slot
    int64_t *        begin; // [n_slots + 2] first sorted row of each slot; slot n_slots is the base
    dqrelo_scratch * scratch;
};

static int64_t count_slots(const ggml_tensor * dst) {
    return dst->src[2]->ne[0] / (int64_t) sizeof(dqrelo_entry);
}

// The rank is not known when the work memory is planned (tables change between runs), so room is for the largest that makes sense; in whole
// cache lines, because different threads compute different ranks.
static int64_t max_rank(int64_t n_in, int64_t n_out) {
    return (std::min(n_in, n_out) + 15) / 16 * 16;
}

static work lay_out(const ggml_tensor * dst, int ith, int nth, arena & memory) {
    const int64_t n_rows = ggml_nrows(dst);
    work          w      = {};
    if (ggml_dqrelo_form(dst) == DQRELO_FORM_MATMUL) {
        const int64_t n_in = dst->src[1]->ne[0];
        w.t_stride         = max_rank(n_in, dst->ne[0]);
        w.q                = memory.take<int8_t>(n_rows * dqrelo_q_bytes(n_in));
        w.act              = memory.take<dqrelo_act>(n_rows);
        w.t                = memory.take<float>(n_rows * w.t_stride);
    }
    for (int i = 0; i < nth; i++) {
        dqrelo_row *     rows    = memory.take<dqrelo_row>(n_rows);
        int64_t *        begin   = memory.take<int64_t>(count_slots(dst) + 2);
        dqrelo_scratch * scratch = memory.take<dqrelo_scratch>(1);
        if (i == ith) {
            w.rows    = rows;
            w.begin   = begin;
            w.scratch = scratch;
        }
    }
    return w;
}

size_t dqrelo_cpu_work_bytes(const struct ggml_tensor * dst, int n_threads) {
    arena memory = { nullptr };
    lay_out(dst, 0, n_threads, memory);
    return memory.n_bytes + ALIGNMENT; // the work memory itself may be aligned to less
}

// The slot whose entry row (i1, i2, i3) uses, or n_slots where the base alone is wanted; its scale in *s.
static int64_t slot_of(const ggml_tensor * dst, int64_t i1, int64_t i2, int64_t i3, float * s) {
    const int32_t * stride  = ggml_dqrelo_stride(dst);
    const float *   owner   = (const float *) dst->src[3]->data + 2 * (i1 * stride[0] + i2 * stride[1] + i3 * stride[2]);
    const int64_t   n_slots = count_slots(dst);
    const int64_t   slot    = (int64_t) owner[0];
    *s                      = owner[1];
    GGML_ASSERT(slot < n_slots);
    if (slot < 0 || *s == 0.0f || dqrelo_entry_is_empty((const dqrelo_entry *) dst->src[2]->data + slot)) {
        return n_slots;
    }
    return slot;
}

static dqrelo_row make_row(const ggml_tensor * dst, int64_t i1, int64_t i2, int64_t i3, float s) {
    const ggml_tensor * y = dst->src[0];
    const ggml_tensor * x = dst->src[1];
    dqrelo_row          row;
    row.dst = (float *) ((char *) dst->data + i1 * dst->nb[1] + i2 * dst->nb[2] + i3 * dst->nb[3]);
    row.y   = (const float *) ((const char *) y->data + i1 * y->nb[1] + i2 * y->nb[2] + i3 * y->nb[3]);
    row.x   = nullptr;
    row.id  = i1;
    row.s   = s;
    if (ggml_dqrelo_form(dst) == DQRELO_FORM_ROWS) {
        row.id = *(const int32_t *) ((const char *) x->data + i1 * x->nb[0] + i2 * x->nb[1] + i3 * x->nb[2]);
    } else {
        row.x = (const float *) ((const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3]);
    }
    return row;
}

// Fills w.rows and w.begin: a counting sort of the rows by slot. Every thread makes its own copy, which costs less than a barrier.
static void sort_rows(const ggml_tensor * dst, const work & w) {
    const int64_t n_slots = count_slots(dst);
    int64_t *     next    = w.begin + 1; // counts first, then where the slot's next row goes; in the end where the slot ends
    std::fill(w.begin, w.begin + n_slots + 2, 0);

    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i3 = 0; i3 < dst->ne[3]; i3++) {
            for (int64_t i2 = 0; i2 < dst->ne[2]; i2++) {
                for (int64_t i1 = 0; i1 < dst->ne[1]; i1++) {
                    float         s;
                    const int64_t slot = slot_of(dst, i1, i2, i3, &s);
                    if (pass == 1) {
                        w.rows[next[slot]] = make_row(dst, i1, i2, i3, s);
                    }
                    next[slot]++;
                }
            }
        }
        if (pass == 0) {
            int64_t first = 0;
            for (int64_t slot = 0; slot <= n_slots; slot++) {
                const int64_t n = next[slot];
                next[slot]      = first;
                first += n;
            }
        }
    }
}

static dqrelo_group group_of(const ggml_tensor * dst, const work & w, int64_t slot) {
    dqrelo_group g;
    g.e        = (const dqrelo_entry *) dst->src[2]->data + slot;
    g.rows     = w.rows + w.begin[slot];
    g.n_rows   = w.begin[slot + 1] - w.begin[slot];
    g.q        = w.q + w.begin[slot] * dqrelo_q_bytes(dst->src[1]->ne[0]);
    g.act      = w.act + w.begin[slot];
    g.t        = w.t + w.begin[slot] * w.t_stride;
    g.t_stride = w.t_stride;
    return g;
}

static void copy_rows(const ggml_tensor * dst, const work & w, int64_t i0, int64_t i1) {
    const int64_t n_slots = count_slots(dst);
    for (int64_t r = w.begin[n_slots]; r < w.begin[n_slots + 1]; r++) {
        if (w.rows[r].dst != w.rows[r].y) {
            memcpy(w.rows[r].dst + i0, w.rows[r].y + i0, (i1 - i0) * sizeof(float));
        }
    }
}

static void forward_matmul(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const dqrelo_kernels * kernels = dqrelo_cpu_kernels();
    const int64_t          n_slots = count_slots(dst);
    const int64_t          n_out   = dst->ne[0];
    const int              ith     = params->ith;
    const int              nth     = params->nth;

    bool wait = false;
    for (int64_t slot = 0; slot < n_slots; slot++) {
        const dqrelo_group g = group_of(dst, w, slot);
        if (g.n_rows > 0) {
            GGML_ASSERT(g.e->n_in == dst->src[1]->ne[0] && g.e->n_out == n_out && g.e->rank <= w.t_stride && g.e->n_planes <= DQRELO_MAX_PLANES);
            dqrelo_matmul_prepare(kernels, &g, (int) ((ith + slot) % nth), nth); // shares rotate, for many slots of one row
            wait = wait || !g.e->dense;
        }
    }
    if (wait) {
        ggml_barrier(params->threadpool);
    }

    // a share begins at a multiple of a cache line of dst
    const int64_t n_lines = (n_out + 15) / 16;
    const int64_t i0      = std::min(n_out, n_lines * ith / nth * 16);
    const int64_t i1      = std::min(n_out, n_lines * (ith + 1) / nth * 16);
    for (int64_t slot = 0; slot < n_slots; slot++) {
        const dqrelo_group g = group_of(dst, w, slot);
        if (g.n_rows > 0) {
            dqrelo_matmul_apply(kernels, &g, i0, i1, w.scratch);
        }
    }
    copy_rows(dst, w, i0, i1);
}

static void forward_rows(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t n_tiles = (dst->ne[0] + DQRELO_TILE_J - 1) / DQRELO_TILE_J;
    const int64_t j0      = std::min(dst->ne[0], n_tiles * params->ith / params->nth * DQRELO_TILE_J);
    const int64_t j1      = std::min(dst->ne[0], n_tiles * (params->ith + 1) / params->nth * DQRELO_TILE_J);
    for (int64_t slot = 0; slot < count_slots(dst); slot++) {
        const dqrelo_entry * e = (const dqrelo_entry *) dst->src[2]->data + slot;
        for (int64_t r = w.begin[slot]; r < w.begin[slot + 1]; r++) {
            GGML_ASSERT(e->n_in == dst->ne[0] && w.rows[r].id >= 0 && w.rows[r].id < e->n_out);
            dqrelo_rows_apply(dqrelo_cpu_kernels(), e, &w.rows[r], j0, j1);
        }
    }
    copy_rows(dst, w, j0, j1);
}

static void forward_elementwise(const ggml_compute_params * params, const ggml_tensor * dst, const work & w) {
    const int64_t n_slots = count_slots(dst);
    for (int64_t slot = 0; slot < n_slots; slot++) {
        const dqrelo_entry * e = (const dqrelo_entry *) dst->src[2]->data + slot;
        for (int64_t r = w.begin[slot] + params->ith; r < w.begin[slot + 1]; r += params->nth) {
            GGML_ASSERT(e->dense && dst->ne[0] % e->n_in == 0 && e->n_out > 0);
            dqrelo_elementwise_apply(dqrelo_cpu_kernels(), ggml_dqrelo_form(dst), e, &w.rows[r], dst->ne[0]);
        }
    }
    const int64_t i0 = dst->ne[0] * params->ith / params->nth;
    const int64_t i1 = dst->ne[0] * (params->ith + 1) / params->nth;
    copy_rows(dst, w, i0, i1);
}

void dqrelo_cpu_forward(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    uint8_t *  base   = (uint8_t *) (((uintptr_t) params->wdata + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    arena      memory = { base };
    const work w      = lay_out(dst, params->ith, params->nth, memory);
    GGML_ASSERT(base + memory.n_bytes <= (uint8_t *) params->wdata + params->wsize);
    sort_rows(dst, w);

    switch (ggml_dqrelo_form(dst)) {
        case DQRELO_FORM_MATMUL: forward_matmul(params, dst, w); break;
        case DQRELO_FORM_ROWS: forward_rows(params, dst, w); break;
        case DQRELO_FORM_MUL:
        case DQRELO_FORM_ADD: forward_elementwise(params, dst, w); break;
    }
}

const char * dqrelo_cpu_isa(void) {
    return dqrelo_cpu_kernels()->name;
}
