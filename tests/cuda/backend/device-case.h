// device-case.h: an op_case moved to a device: its tensors, and what the entries of its table point to.
#pragma once

#include "op-case.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

// Bytes of an entry's arrays.
struct entry_bytes {
    size_t sign, scale[DQRELO_MAX_PLANES], cscale, u, v, dense;

    explicit entry_bytes(const dqrelo_entry & e) {
        const size_t n_in = (size_t) e.n_in, n_out = (size_t) e.n_out, n_mat = (size_t) e.n_mat;
        sign = n_mat * n_out * (n_in / 8);
        for (int p = 0; p < DQRELO_MAX_PLANES; p++) {
            scale[p] = n_mat * (e.scale_per_row >> p & 1 ? n_out : 1) * sizeof(float);
        }
        cscale = n_mat * n_in * sizeof(float);
        u      = e.u ? n_mat * n_out * ggml_row_size((ggml_type) e.type_u, e.rank) : 0;
        v      = e.v ? n_mat * (size_t) e.rank * ggml_row_size((ggml_type) e.type_v, e.n_in) : 0;
        dense  = e.dense ? n_mat * ggml_row_size((ggml_type) e.type_dense, e.n_in * e.n_out) : 0;
    }
};

// The sources of a node, copied to a device's memory, and the node on them. The node itself has no memory yet.
struct device_case {
    ggml_context_ptr                                    ctx; // of the copies and the node
    ggml_backend_buffer_ptr                             buffer;
    std::vector<std::pair<ggml_tensor *, const void *>> contents; // of tensors in `ctx`
    ggml_tensor *                                       node = nullptr;

    device_case(const op_case & c, const ggml_tensor * host, ggml_backend_t backend) :
        ctx(ggml_init({ 512 * ggml_tensor_overhead(), nullptr, true })) {
        ggml_tensor * src[5] = {};
        for (int i = 0; i < 5; i++) {
            src[i] = host->src[i] ? copy_of(host->src[i]) : nullptr;
        }
        auto *              table   = (const dqrelo_entry *) host->src[2]->data;
        const size_t        n_slots = c.n_slots();
        std::vector<arrays> packs;
        for (size_t k = 0; k < n_slots; k++) {
            packs.push_back(arrays_of(table[k]));
        }
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (const auto & [tensor, data] : contents) {
            ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
        }
        std::vector<dqrelo_entry> entries;
        for (size_t k = 0; k < n_slots; k++) {
            entries.push_back(moved(table[k], packs[k]));
        }
        ggml_backend_tensor_set(src[2], entries.data(), 0, n_slots * sizeof(dqrelo_entry));
        node = ggml_dqrelo(ctx.get(), c.form, src[0], src[1], src[4], src[2], src[3], c.stride.data());
    }

private:
    // The copies of an entry's arrays, null where it has none.
    struct arrays {
        ggml_tensor *sign[DQRELO_MAX_PLANES], *scale[DQRELO_MAX_PLANES], *cscale, *u, *v, *dense;
    };

    ggml_tensor * copy_of(const ggml_tensor * t) {
        const ggml_tensor * whole = t->view_src ? t->view_src : t;
        ggml_tensor *       copy  = ggml_dup_tensor(ctx.get(), whole);
        contents.emplace_back(copy, whole->data);
        return t->view_src ? ggml_view_4d(ctx.get(), copy, t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], t->view_offs) : copy;
    }

    ggml_tensor * bytes_of(const void * data, size_t n_bytes) {
        if (!data) {
            return nullptr;
        }
        ggml_tensor * t = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) n_bytes);
        contents.emplace_back(t, data);
        return t;
    }

    arrays arrays_of(const dqrelo_entry & e) {
        const entry_bytes n(e);
        arrays            a = {};
        for (int p = 0; p < e.n_planes; p++) {
            a.sign[p]  = bytes_of(e.sign[p], n.sign);
            a.scale[p] = bytes_of(e.scale[p], n.scale[p]);
        }
        a.cscale = bytes_of(e.cscale, n.cscale);
        a.u      = bytes_of(e.u, n.u);
        a.v      = bytes_of(e.v, n.v);
        a.dense  = bytes_of(e.dense, n.dense);
        return a;
    }

    static dqrelo_entry moved(dqrelo_entry e, const arrays & a) {
        for (int p = 0; p < e.n_planes; p++) {
            e.sign[p]  = (const uint8_t *) a.sign[p]->data;
            e.scale[p] = (const float *) a.scale[p]->data;
        }
        e.cscale = a.cscale ? (const float *) a.cscale->data : nullptr;
        e.u      = a.u ? a.u->data : nullptr;
        e.v      = a.v ? a.v->data : nullptr;
        e.dense  = a.dense ? a.dense->data : nullptr;
        return e;
    }
};
