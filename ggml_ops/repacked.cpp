#include "repacked.h"

#include "cpu/k-quants.h"

#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <vector>

// In a block of eight rows the bytes of each part of a block follow those of the same part of the other rows:
//
//   one row     | d | values 0 .. 7 | values 8 .. 15 | ...
//   repacked    | d of 8 rows | values 0 .. 7 of row 0 | of row 1 | ... | values 8 .. 15 of row 0 | ...
static constexpr int ROWS  = 8;
static constexpr int CHUNK = 8; // bytes of a row's values that lie together

// Copies a row's values, n bytes that are each changed by `flip`.
static void restore_values(const uint8_t * src, int row, int64_t n, uint64_t flip, uint8_t * out) {
    for (int64_t k = 0; k < n; k += CHUNK) {
        uint64_t bytes;
        memcpy(&bytes, src + k * ROWS + row * CHUNK, sizeof(bytes));
        bytes ^= flip;
        memcpy(out + k, &bytes, sizeof(bytes));
    }
}

//
// Q4_0, IQ4_NL: a scale of two bytes, and 16 bytes of values; repacked ones of Q4_0 are signed
//

static constexpr int64_t Q4_SCALE = 2, Q4_VALUES = 16;

static void restore_q4(const uint8_t * src, int row, uint64_t flip, uint8_t * out) {
    memcpy(out, src + row * Q4_SCALE, Q4_SCALE);
    restore_values(src + ROWS * Q4_SCALE, row, Q4_VALUES, flip, out + Q4_SCALE);
}

//
// Q4_K: d and dmin of two bytes each, 12 bytes of eight scales and eight minima of 6 bits, and 128 bytes of values
//
// A block of a row has one group of scales and minima (k-quants.h), for its eight sub-blocks. Eight repacked ones have one for each
// sub-block, for the eight rows.

static constexpr int64_t K_SCALE = 2, K_GROUP = 12, K_VALUES = 128;

static void put_six_bits(uint8_t * group, int k, dqrelo_six_bits value) {
    if (k < 4) {
        group[k]     = (uint8_t) (group[k] | value.s);
        group[4 + k] = (uint8_t) (group[4 + k] | value.m);
    } else {
        group[k - 4] = (uint8_t) (group[k - 4] | value.s >> 4 << 6);
        group[k]     = (uint8_t) (group[k] | value.m >> 4 << 6);
        group[4 + k] = (uint8_t) ((value.s & 15) | (value.m & 15) << 4);
    }
}

static void restore_q4_k(const uint8_t * src, int row, uint8_t * out) {
    memcpy(out, src + row * K_SCALE, K_SCALE);
    memcpy(out + K_SCALE, src + (ROWS + row) * K_SCALE, K_SCALE);
    src += 2 * ROWS * K_SCALE;
    out += 2 * K_SCALE;
    memset(out, 0, K_GROUP);
    for (int k = 0; k < 8; k++) {
        put_six_bits(out, k, dqrelo_six_bits_of(src + k * K_GROUP, row));
    }
    restore_values(src + ROWS * K_GROUP, row, K_VALUES, 0, out + K_GROUP);
}

static bool has_layout(enum ggml_type type) {
    return type == GGML_TYPE_Q4_0 || type == GGML_TYPE_IQ4_NL || type == GGML_TYPE_Q4_K;
}

void dqrelo_restore_blocks(enum ggml_type type, const void * matrix, int64_t n_blocks, int64_t i, int64_t first, int64_t n, void * out) {
    const int64_t   n_bytes = (int64_t) ggml_type_size(type);
    const uint8_t * src     = (const uint8_t *) matrix + (i / ROWS * n_blocks + first) * ROWS * n_bytes;
    uint8_t *       dst     = (uint8_t *) out;
    for (int64_t b = 0; b < n; b++, src += ROWS * n_bytes, dst += n_bytes) {
        switch (type) {
            case GGML_TYPE_Q4_0: restore_q4(src, (int) (i % ROWS), UINT64_C(0x8888888888888888), dst); break;
            case GGML_TYPE_IQ4_NL: restore_q4(src, (int) (i % ROWS), 0, dst); break;
            case GGML_TYPE_Q4_K: restore_q4_k(src, (int) (i % ROWS), dst); break;
            default: GGML_ABORT("no layout of %s", ggml_type_name(type));
        }
    }
}

bool dqrelo_is_repacked(const struct ggml_tensor * w) {
    return w->buffer && strcmp(ggml_backend_buft_name(ggml_backend_buffer_get_type(w->buffer)), "CPU_REPACK") == 0;
}

// Lets ggml repack two times eight rows of two random blocks, and returns whether they can be restored.
static bool try_layout(ggml_backend_buffer_type_t buft, enum ggml_type type) {
    static constexpr int64_t N_BLOCKS = 2, N_ROWS = 2 * ROWS;

    const ggml_init_params params = { ggml_tensor_overhead(), nullptr, /*no_alloc=*/true };
    ggml_context *         ctx    = ggml_init(params);
    ggml_tensor *          w      = ggml_new_tensor_2d(ctx, type, N_BLOCKS * ggml_blck_size(type), N_ROWS);
    ggml_backend_buffer_t  buffer = ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, w));
    bool                   ok = buffer && ggml_backend_tensor_alloc(buffer, w, ggml_backend_buffer_get_base(buffer)) == GGML_STATUS_SUCCESS;
    if (ok && w->extra) { // Else this CPU has no other layout of the type.
        std::mt19937         random(1);
        std::vector<uint8_t> bytes(ggml_nbytes(w)), restored(bytes.size());
        for (uint8_t & byte : bytes) {
            byte = (uint8_t) random();
        }
        ggml_backend_tensor_set(w, bytes.data(), 0, bytes.size());
        for (int64_t i = 0; i < N_ROWS; i++) {
            dqrelo_restore_blocks(type, w->data, N_BLOCKS, i, 0, N_BLOCKS, restored.data() + i * w->nb[1]);
        }
        ok = restored == bytes;
    } else {
        ok = false;
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return ok;
}

bool dqrelo_can_restore(const struct ggml_tensor * w) {
    static std::mutex                mutex;
    static std::map<ggml_type, bool> known;
    if (!dqrelo_is_repacked(w) || !has_layout(w->type)) {
        return false;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const auto                        at = known.find(w->type);
    return at != known.end() ? at->second : known[w->type] = try_layout(ggml_backend_buffer_get_type(w->buffer), w->type);
}
