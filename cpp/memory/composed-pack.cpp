#include "memory/composed-pack.h"

#include "file/delta-file.h"
#include "file/finite.h"
#include "file/message.h"
#include "cpu/stack.h"
#include "memory/placement.h"
#include "memory/upload.h"

#include "ggml-alloc.h"
#include "ggml-backend.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace dqrelo {

namespace {

constexpr size_t    CONVERTED_BYTES = 1 << 20;        // of a tensor at a time, on their way to the device
constexpr ggml_type DECODED_TYPE    = GGML_TYPE_Q8_0; // of sign factors, where the device multiplies it

// Returns whether the device multiplies n_mat matrices of a type, n_in x n_out, by activations in F32.
bool takes(ggml_backend_buffer_type_t buft, ggml_type type, int64_t n_in, int64_t n_out, int64_t n_mat) {
    if (n_in % ggml_blck_size(type) != 0) {
        return false;
    }
    const ggml_backend_dev_t dev = device_of(buft);
    ggml_context_ptr         ctx(ggml_init({ 8 * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    ggml_backend_buffer_ptr  empty(ggml_backend_buft_alloc_buffer(buft, 0));
    ggml_tensor *            w   = ggml_new_tensor_3d(ctx.get(), type, n_in, n_out, n_mat);
    ggml_tensor *            x   = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_in, 1, n_mat);
    ggml_tensor *            ids = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 1, n_mat);
    w->buffer                    = empty.get();
    const bool product           = ggml_backend_dev_supports_op(dev, ggml_mul_mat(ctx.get(), w, x));
    const bool by_id             = n_mat == 1 || ggml_backend_dev_supports_op(dev, ggml_mul_mat_id(ctx.get(), w, x, ids));
    return product && by_id;
}

ggml_type sign_type(ggml_backend_buffer_type_t buft, const dqrelo_entry & e) {
    for (ggml_type type : { GGML_TYPE_Q1_0, GGML_TYPE_Q4_0 }) {
        if (takes(buft, type, e.n_in, e.n_out, e.n_mat)) {
            return type;
        }
    }
    return GGML_TYPE_F16;
}

// The type of a sparse weight's dense copy: one of 16 bits that holds F16 and BF16 as they are, and F8, two bits times a power of two.
ggml_type sparse_type(ggml_backend_buffer_type_t buft, const dqrelo_entry & e) {
    const ggml_type type = e.type_entries == GGML_TYPE_F16 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
    return takes(buft, type, e.n_in, e.n_out, e.n_mat) ? type : GGML_TYPE_F32;
}

ggml_type factor_type(ggml_backend_buffer_type_t buft, int32_t type, int64_t n_cols, int64_t n_rows, int64_t n_mat) {
    return takes(buft, (ggml_type) type, n_cols, n_rows, n_mat) ? (ggml_type) type : GGML_TYPE_F16;
}

// One row of signs, LSB first, as +-1 of `type`.
void expand_signs(const uint8_t * bits, int64_t n, ggml_type type, uint8_t * out) {
    const uint16_t one   = ggml_fp32_to_fp16(1.0f);
    const uint16_t minus = ggml_fp32_to_fp16(-1.0f);
    const auto     bit   = [bits](int64_t j) { return bits[j / 8] >> (j % 8) & 1; };
    if (type == GGML_TYPE_Q1_0) { // Blocks of 128 are {F16 scale, 16 bytes of bits in our order}.
        for (int64_t b = 0; b < n / 128; b++, out += 18) {
            memcpy(out, &one, 2);
            memcpy(out + 2, bits + 16 * b, 16);
        }
    } else if (type == GGML_TYPE_Q4_0) { // Blocks of 32 are {F16 scale, 16 bytes with columns j and 16 + j}; a nibble less 8 is the value.
        for (int64_t b = 0; b < n / 32; b++, out += 18) {
            memcpy(out, &one, 2);
            for (int64_t j = 0; j < 16; j++) {
                out[2 + j] = (uint8_t) (7 + 2 * bit(32 * b + j) + 16 * (7 + 2 * bit(32 * b + 16 + j)));
            }
        }
    } else {
        for (int64_t j = 0; j < n; j++) {
            memcpy(out + 2 * j, bit(j) ? &one : &minus, 2);
        }
    }
}

// Converts one row of finite numbers in another type, F16 or F32. Returns how many are too large for it.
size_t convert_row(const void * from, ggml_type from_type, int64_t n, ggml_type type, uint8_t * out) {
    std::vector<float> values((size_t) n);
    if (from_type == GGML_TYPE_F32) {
        memcpy(values.data(), from, ggml_row_size(from_type, n));
    } else {
        ggml_get_type_traits(from_type)->to_float(from, values.data(), n);
    }
    if (type == GGML_TYPE_F32) {
        memcpy(out, values.data(), ggml_row_size(type, n));
    } else {
        ggml_fp32_to_fp16_row(values.data(), (ggml_fp16_t *) out, n);
    }
    return count_not_finite(type, out, ggml_row_size(type, n));
}

float sign_of(const uint8_t * bits, int64_t j) {
    return bits[j / 8] >> (j % 8) & 1 ? 1.0f : -1.0f;
}

// Calls f with the codes of row k of B, which are those of column k of A.
template <typename F>
void for_each_code(const dqrelo_entry & e, int64_t k, F f) {
    int64_t code = k;
    for (int p = 0; p < DQRELO_MAX_CODE_PLANES && k < e.plane_ranks[p]; code += e.plane_ranks[p++]) {
        f(code);
    }
}

// Row k of B, of one matrix.
void decode_b(const dqrelo_entry & e, int64_t k, float * out) {
    for_each_code(e, k, [&](int64_t code) {
        const uint8_t * signs = e.vsign + code * (e.n_in / 8);
        const float     scale = ggml_bf16_to_fp32(((const ggml_bf16_t *) e.vscale)[code]);
        for (int64_t j = 0; j < e.n_in; j++) {
            out[j] += scale * sign_of(signs, j);
        }
    });
}

// Row i of A, of one matrix.
void decode_a(const dqrelo_entry & e, int64_t i, float * out) {
    const uint8_t * signs = e.usign + i * (e.n_codes / 8);
    for (int64_t k = 0; k < e.plane_ranks[0]; k++) {
        for_each_code(e, k,
                      [&](int64_t code) { out[k] += ggml_bf16_to_fp32(((const ggml_bf16_t *) e.uscale)[code]) * sign_of(signs, code); });
    }
}

// Row i of one matrix of a sparse weight.
void decode_sparse(const dqrelo_entry & e, int64_t i, float * out) {
    int64_t    at  = e.start[i];
    const auto put = [&](int64_t j) {
        const uint16_t bits  = e.type_entries == GGML_TYPE_I8 ? (uint16_t) (((const uint8_t *) e.entries)[at] << 8) // the upper byte of F16
                                                              : ((const uint16_t *) e.entries)[at];
        const float    value = e.type_entries == GGML_TYPE_BF16 ? ggml_bf16_to_fp32({ bits }) : ggml_fp16_to_fp32(bits);
        out[j]               = e.escale ? e.escale[i] * value : value;
        at++;
    };
    for (int64_t j = 0; e.mask && j < e.n_in; j++) {
        if (e.mask[i * (e.n_in / 8) + j / 8] >> (j % 8) & 1) {
            put(j);
        }
    }
    const int64_t n_blocks = dqrelo_sparse_blocks(e.n_in);
    for (int64_t b = 0; e.count && b < n_blocks; b++) {
        for (int64_t end = at + e.count[i * n_blocks + b]; at < end;) {
            put(b * DQRELO_SPARSE_BLOCK + e.column[at]);
        }
    }
}

class writer {
public:
    explicit writer(ggml_backend_buffer_type_t buft) : up(device_of(buft)) {}

    // Rows of `dst`; each is written by convert(number of the row, row of dst).
    template <typename Convert>
    void rows(ggml_tensor * dst, Convert convert) {
        const int64_t n_rows     = ggml_nrows(dst);
        const size_t  n_dst      = ggml_row_size(dst->type, dst->ne[0]);
        const int64_t n_together = std::max<int64_t>(1, (int64_t) (CONVERTED_BYTES / n_dst));
        for (int64_t i = 0; i < n_rows; i += n_together) {
            const int64_t n = std::min(n_together, n_rows - i);
            buffer.resize((size_t) n * n_dst);
            for (int64_t k = 0; k < n; k++) {
                convert(i + k, buffer.data() + (size_t) k * n_dst);
            }
            up.copy(dst, (size_t) i * n_dst, buffer.data(), buffer.size());
        }
    }

    void signs(ggml_tensor * dst, const uint8_t * data) {
        rows(dst, [dst, data](int64_t i, uint8_t * to) { expand_signs(data + i * (dst->ne[0] / 8), dst->ne[0], dst->type, to); });
    }

    // Rows that decode(number of the row, F32 row) gives.
    template <typename Decode>
    void decoded(ggml_tensor * dst, Decode decode) {
        size_t             n_bad = 0;
        std::vector<float> values((size_t) dst->ne[0]);
        rows(dst, [&](int64_t i, uint8_t * to) {
            std::fill(values.begin(), values.end(), 0.0f);
            decode(i, values.data());
            ggml_quantize_chunk(dst->type, values.data(), to, 0, 1, dst->ne[0], nullptr);
            n_bad += count_not_finite(dst->type, to, ggml_row_size(dst->type, dst->ne[0]));
        });
        complain(dst, n_bad);
    }

    void numbers(ggml_tensor * dst, const void * data, int32_t type) {
        if (!dst) {
            return;
        }
        if (dst->type == type) {
            up.copy(dst, 0, data, ggml_nbytes(dst));
            return;
        }
        const ggml_type from_type = (ggml_type) type;
        size_t          n_bad     = 0;
        rows(dst, [&](int64_t i, uint8_t * to) {
            const uint8_t * from = (const uint8_t *) data + (size_t) i * ggml_row_size(from_type, dst->ne[0]);
            n_bad += convert_row(from, from_type, dst->ne[0], dst->type, to);
        });
        complain(dst, n_bad);
    }

    std::string problem; // Keeps the first problem only.

    void finish() { up.finish(); }

private:
    void complain(const ggml_tensor * dst, size_t n_bad) {
        if (n_bad > 0 && problem.empty()) {
            problem = message("tensor '%s' has %zu numbers over 65504, too large for F16, in which this device multiplies it",
                              printable(dst->name).c_str(), n_bad);
        }
    }

    uploader             up;
    std::vector<uint8_t> buffer;
};

} // namespace

void composed_pack::make_tensors(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights) {
    const size_t n_max = weights.size() * (2 * DQRELO_MAX_PLANES + 6);
    ctx.reset(ggml_init({ n_max * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    const auto make = [&](const std::string & name, ggml_type type, std::array<int64_t, 3> ne) {
        ggml_tensor * t = ggml_new_tensor_3d(ctx.get(), type, ne[0], ne[1], ne[2]);
        ggml_set_name(t, name.c_str());
        return t;
    };
    for (size_t i : weights) {
        const dqrelo_entry  e    = file.entry(i);
        const std::string & name = file.weights()[i].name;
        composed_weight &   w    = packs[i];
        w.n_mat                  = e.n_mat;
        if (e.dense) {
            w.dense = make(name + ".dq_dense", GGML_TYPE_F32, { e.n_in, e.n_out, e.n_mat });
        }
        if (e.entries) { // No operator knows places, so the zeros between are there, too.
            w.dense = make(name + ".dq_entry", sparse_type(buft, e), { e.n_in, e.n_out, e.n_mat });
        }
        for (int32_t p = 0; p < e.n_planes; p++) {
            const bool             per_row = e.scale_per_row >> p & 1;
            composed_weight::plane plane;
            plane.sign = make(name + ".dq_sign", sign_type(buft, e), { e.n_in, e.n_out, e.n_mat });
            if (per_row || e.n_mat > 1) {
                plane.scale = make(name + ".dq_scale", GGML_TYPE_F32, { per_row ? e.n_out : 1, e.n_mat, 1 });
            }
            w.planes.push_back(plane);
        }
        if (e.cscale) {
            w.cscale = make(name + ".dq_cscale", GGML_TYPE_F32, { e.n_in, e.n_mat, 1 });
        }
        if (e.rank > 0) {
            w.u = make(name + ".dq_u", factor_type(buft, e.type_u, e.rank, e.n_out, e.n_mat), { e.rank, e.n_out, e.n_mat });
            w.v = make(name + ".dq_v", factor_type(buft, e.type_v, e.n_in, e.rank, e.n_mat), { e.n_in, e.rank, e.n_mat });
        }
        if (e.n_codes > 0) { // zeros behind the rank fill blocks
            const int64_t rank = GGML_PAD(e.plane_ranks[0], ggml_blck_size(DECODED_TYPE));
            w.a = make(name + ".dq_usign", factor_type(buft, DECODED_TYPE, rank, e.n_out, e.n_mat), { rank, e.n_out, e.n_mat });
            w.b = make(name + ".dq_vsign", factor_type(buft, DECODED_TYPE, e.n_in, rank, e.n_mat), { e.n_in, rank, e.n_mat });
        }
    }
}

size_t composed_pack::bytes_needed(const delta_file & file, ggml_backend_buffer_type_t buft, const std::vector<size_t> & weights) {
    composed_pack pack;
    pack.make_tensors(file, buft, weights);
    return ggml_backend_alloc_ctx_tensors_from_buft_size(pack.ctx.get(), buft);
}

std::unique_ptr<composed_pack> composed_pack::load(const delta_file & file, ggml_backend_buffer_type_t buft,
                                                   const std::vector<size_t> & weights, std::string & err) {
    std::unique_ptr<composed_pack> pack(new composed_pack());
    pack->make_tensors(file, buft, weights);
    pack->buffer = allocate_weights(pack->ctx.get(), buft, file.path(), err);
    if (!pack->buffer) {
        return nullptr;
    }

    writer out(buft);
    for (auto & [i, w] : pack->packs) {
        const dqrelo_entry e = file.entry(i);
        for (size_t p = 0; p < w.planes.size(); p++) {
            out.signs(w.planes[p].sign, e.sign[p]);
            out.numbers(w.planes[p].scale, e.scale[p], GGML_TYPE_F32);
            w.planes[p].alpha = e.scale[p][0];
        }
        if (w.a) {
            const auto matrix = [&](const ggml_tensor * t, int64_t row) { return dqrelo_entry_matrix(&e, row / t->ne[1]); };
            out.decoded(w.a, [&](int64_t row, float * to) { decode_a(matrix(w.a, row), row % w.a->ne[1], to); });
            out.decoded(w.b, [&](int64_t row, float * to) { decode_b(matrix(w.b, row), row % w.b->ne[1], to); });
        }
        out.numbers(w.cscale, e.cscale, GGML_TYPE_F32);
        out.numbers(w.u, e.u, e.type_u);
        out.numbers(w.v, e.v, e.type_v);
        if (e.entries) {
            out.decoded(w.dense, [&](int64_t row, float * to) { decode_sparse(e, row, to); });
        } else {
            out.numbers(w.dense, e.dense, e.type_dense);
        }
    }
    out.finish();
    if (!out.problem.empty()) {
        err = file.path() + ": " + out.problem + ". Convert the fine-tune without it (--exclude), or run with -ngl 0";
        return nullptr;
    }
    return pack;
}

const composed_weight * composed_pack::find(size_t i) const {
    const auto it = packs.find(i);
    return it == packs.end() ? nullptr : &it->second;
}

} // namespace dqrelo
