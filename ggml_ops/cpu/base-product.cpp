#include "base-product.h"

#include "dqrelo-op.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ops.h"
#include "repack.h"
#include "tiled/tiled.h"
#include "traits.h"

namespace {

// A node as the graph would have had; it points into those of the graph.
struct product {
    ggml_tensor x, y;

    product(const ggml_tensor * node, ggml_op op) : x(*node->src[1]), y(*node) {
        y.op = op;
        for (ggml_tensor *& src : y.src) {
            src = nullptr;
        }
        memset(y.op_params, 0, sizeof(y.op_params));
        y.src[0] = ggml_dqrelo_base_weight(node);
        y.src[1] = &x;
    }
    // The same for n rows of a matrix from row r0 on.
    product(const ggml_tensor * node, int64_t r0, int64_t n) : product(node, GGML_OP_MUL_MAT) {
        x.ne[1] = y.ne[1] = n;
        x.data            = (char *) x.data + r0 * x.nb[1];
        y.data            = (char *) y.data + r0 * y.nb[1];
    }
    product(const product &)             = delete;
    product & operator=(const product &) = delete;
};

} // namespace

size_t dqrelo_base_product_bytes(const ggml_tensor * node, int n_threads) {
    product whole(node, 0, node->ne[1]);
    size_t  n_repacked = 0;
    if (ggml_cpu_extra_work_size(n_threads, &whole.y, &n_repacked)) {
        return GGML_PAD(n_repacked, 64);
    }
    const ggml_type type    = ggml_get_type_traits_cpu(whole.y.src[0]->type)->vec_dot_type;
    const size_t    n_bytes = type == GGML_TYPE_F32 ? 0 : ggml_row_size(type, ggml_nelements(&whole.x));
    return GGML_PAD(n_bytes, 64) + ggml_tiled_wdata_size(n_threads, &whole.y);
}

void dqrelo_base_product(const ggml_compute_params * params, const ggml_tensor * node, int64_t r0, int64_t n, void * memory,
                         size_t n_bytes) {
    product             some(node, r0, n);
    ggml_compute_params own = *params;
    own.wdata               = memory;
    own.wsize               = n_bytes;
    if (!ggml_cpu_extra_compute_forward(&own, &some.y)) { // It is for repacked weights.
        ggml_compute_forward_mul_mat(&own, &some.y);
    }
}

size_t dqrelo_tiled_experts_bytes(const ggml_tensor * node, int n_threads) {
    product whole(node, GGML_OP_MUL_MAT_ID);
    return ggml_tiled_wdata_size(n_threads, &whole.y);
}

bool dqrelo_tiled_experts(const ggml_compute_params * params, const ggml_tensor * node, int64_t matrix, const int32_t (*rows)[2],
                          int64_t n_rows, void * x, void * scratch) {
    product             whole(node, GGML_OP_MUL_MAT_ID);
    ggml_compute_params own = *params;
    own.wdata               = x;
    return ggml_compute_forward_mul_mat_id_tiled(&own, &whole.y, matrix, n_rows, rows[0], (char *) scratch);
}

void dqrelo_repacked_product(ggml_type type, const void * rows, int64_t n_rows, const void * x, int64_t n_in, float * y) {
    const auto product = [&](auto * gemv) { gemv((int) n_in, y, (size_t) n_rows, rows, x, 1, (int) n_rows); };
    switch (type) {
        case GGML_TYPE_Q4_0: product(ggml_gemv_q4_0_8x8_q8_0); break;
        case GGML_TYPE_IQ4_NL: product(ggml_gemv_iq4_nl_8x8_q8_0); break;
        case GGML_TYPE_Q4_K: product(ggml_gemv_q4_K_8x8_q8_K); break;
        default: GGML_ABORT("no layout of %s", ggml_type_name(type));
    }
}
