// op-device.h: runs one op DQRELO with everything that it reads in the memory of a device, as a delta and its tables are.
#pragma once

#include "fold-case.h"

#include "../../../ggml_ops/cpu/stack.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <bitset>
#include <cstddef>
#include <map>

class device_op {
public:
    explicit device_op(ggml_backend_dev_t dev) : dev(dev), backend(ggml_backend_dev_init(dev, nullptr)) {}

    // Returns whether the device has the operator for this case.
    bool supports(const op_case & c) {
        place(c, [&](ggml_context * host) { return c.build(host); });
        return ggml_backend_dev_supports_op(dev, node);
    }

    // Computes the case into c.out.
    void run(op_case & c) {
        place(c, [&](ggml_context * host) { return c.build(host); });
        compute(c);
    }

    // Computes an op that has the base's product in it into f.c.out.
    void run(fold_case & f) {
        place(f.c, [&](ggml_context * host) { return f.build(host); });
        compute(f.c);
    }

private:
    static constexpr size_t ALIGNMENT = 64; // Weights lie in a delta file at multiples of it.

    void compute(op_case & c) {
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, node);
        ggml_backend_graph_compute(backend.get(), graph);
        c.out.resize((size_t) ggml_nelements(node));
        if (!c.out.empty()) {
            ggml_backend_tensor_get(node, c.out.data(), 0, ggml_nbytes(node));
        }
    }

    // Takes over the tensors that `build` makes in the host's memory, views as views.
    template <typename F>
    void place(const op_case & c, F build) {
        host.reset(ggml_init({ (size_t) 64 << 20, nullptr, false }));
        ctx.reset(ggml_init({ 32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
        roots.clear();
        const ggml_tensor * built = build(host.get());
        ggml_tensor *       w     = ggml_dqrelo_base_weight(built);
        ggml_tensor *       src[5];
        for (int i = 0; i < 5; i++) {
            src[i] = built->src[i] ? twin(built->src[i]) : nullptr;
        }
        ggml_tensor * packs = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) pack(c, nullptr, nullptr) + 1);
        ggml_tensor * y     = w ? ggml_new_tensor(ctx.get(), GGML_TYPE_F32, GGML_MAX_DIMS, built->ne) : src[0];
        node                = ggml_dqrelo(ctx.get(), c.form, y, src[1], src[4], src[2], src[3], c.stride.data());
        if (w) {
            ggml_dqrelo_fold(node, twin(w));
        }
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(dev)));
        for (const auto & [from, to] : roots) {
            if (ggml_nbytes(from) > 0) {
                ggml_backend_tensor_set(to, from->data, 0, ggml_nbytes(from));
            }
        }
        std::vector<dqrelo_entry> table(c.n_deltas());
        pack(c, packs, table.data());
        for (const dqrelo_entry & e : table) {
            check_moved(e, packs);
        }
        if (!table.empty()) {
            ggml_backend_tensor_set(src[2], table.data(), 0, table.size() * sizeof(dqrelo_entry));
        }
    }

    ggml_tensor * twin(ggml_tensor * t) {
        ggml_tensor * root = t->view_src ? t->view_src : t;
        if (roots.count(root) == 0) {
            roots[root] = ggml_dup_tensor(ctx.get(), root);
        }
        return t == root ? roots[root]
                         : ggml_view_4d(ctx.get(), roots[root], t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3],
                                        t->view_offs);
    }

    // Stops where an array of an entry has stayed in the host's memory, which a device that shares it would not notice. The entry begins
    // with its pointers.
    static void check_moved(const dqrelo_entry & e, const ggml_tensor * packs) {
        const uintptr_t * pointers = (const uintptr_t *) &e;
        const uintptr_t   begin    = (uintptr_t) packs->data;
        for (size_t i = 0; i < offsetof(dqrelo_entry, n_in) / sizeof(void *); i++) {
            GGML_ASSERT(pointers[i] == 0 || (pointers[i] >= begin && pointers[i] < begin + ggml_nbytes(packs)));
        }
    }

    // Returns how many entries a sparse weight has: those before its last row, and the row's own.
    static int64_t count_entries(const dqrelo_entry & e) {
        const int64_t last  = e.n_mat * e.n_out - 1;
        const int64_t width = e.mask ? e.n_in / 8 : dqrelo_sparse_blocks(e.n_in);
        int64_t       n     = e.start[last];
        for (int64_t k = 0; k < width; k++) {
            n += e.mask ? (int64_t) std::bitset<8>(e.mask[last * width + k]).count() : e.count[last * width + k];
        }
        return n;
    }

    // Copies the arrays of all entries behind each other into `packs` and points `table` to them; without `packs` it only counts their
    // bytes.
    static size_t pack(const op_case & c, ggml_tensor * packs, dqrelo_entry * table) {
        size_t     at  = 0;
        const auto put = [&](auto & array, int64_t n_bytes) {
            if (!array) {
                return;
            }
            if (packs) {
                ggml_backend_tensor_set(packs, array, at, (size_t) n_bytes);
                array = (std::remove_reference_t<decltype(array)>) ((uintptr_t) packs->data + at);
            }
            at += GGML_PAD((size_t) n_bytes, ALIGNMENT);
        };
        for (size_t k = 0; k < c.n_deltas(); k++) {
            dqrelo_entry e = c.delta(k);
            for (int p = 0; p < e.n_planes; p++) {
                put(e.sign[p], e.n_mat * e.n_out * (e.n_in / 8));
                put(e.scale[p], e.n_mat * (((e.scale_per_row >> p) & 1) ? e.n_out : 1) * (int64_t) sizeof(float));
            }
            put(e.cscale, e.n_mat * e.n_in * (int64_t) sizeof(float));
            put(e.u, e.n_mat * e.n_out * (int64_t) ggml_row_size((ggml_type) e.type_u, e.rank));
            put(e.v, e.n_mat * e.rank * (int64_t) ggml_row_size((ggml_type) e.type_v, e.n_in));
            put(e.vsign, e.n_mat * e.n_codes * (e.n_in / 8));
            put(e.vscale, e.n_mat * e.n_codes * (int64_t) sizeof(uint16_t));
            put(e.usign, e.n_mat * e.n_out * (e.n_codes / 8));
            put(e.uscale, e.n_mat * e.n_codes * (int64_t) sizeof(uint16_t));
            put(e.dense, e.n_mat * e.n_out * (int64_t) ggml_row_size((ggml_type) e.type_dense, e.n_in));
            if (e.entries) {
                const int64_t n_entries = count_entries(e);
                put(e.entries, n_entries * (e.type_entries == GGML_TYPE_I8 ? 1 : 2));
                put(e.column, n_entries);
                put(e.start, e.n_mat * e.n_out * (int64_t) sizeof(int32_t));
                put(e.mask, e.n_mat * e.n_out * (e.n_in / 8));
                put(e.count, e.n_mat * e.n_out * dqrelo_sparse_blocks(e.n_in));
                put(e.escale, e.n_mat * e.n_out * (int64_t) sizeof(float));
            }
            if (table) {
                table[k] = e;
            }
        }
        return at;
    }

    ggml_backend_dev_t                           dev;
    ggml_backend_ptr                             backend;
    ggml_context_ptr                             host, ctx;
    ggml_backend_buffer_ptr                      buffer;
    std::map<const ggml_tensor *, ggml_tensor *> roots;
    ggml_tensor *                                node = nullptr;
};
