#include "transposed-signs.h"

#include "isa.h"

#include <string.h>

#include <algorithm>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define DQRELO_TARGET_AVX2 __attribute__((target("avx2"))) // They are the only kernels that take transposed signs.
#include <immintrin.h>
#endif

static constexpr int64_t ROWS        = DQRELO_GROUP_ROWS;
static constexpr int64_t CHUNK       = DQRELO_CHUNK_BYTES;
static constexpr int64_t GROUP_CHUNK = ROWS * CHUNK;

bool dqrelo_transposes_signs(void) {
    return dqrelo_isa_chosen() == DQRELO_ISA_AVX2;
}

bool dqrelo_can_transpose(const struct dqrelo_entry * e) {
    return e->n_in / 8 <= DQRELO_TRANSPOSED_MAX_BYTES && e->n_codes / 8 <= DQRELO_TRANSPOSED_MAX_BYTES;
}

#ifdef DQRELO_TARGET_AVX2
// Loads 8 rows, and turns the three bits of a row's number into the lowest ones of a byte's: byte c of row k becomes byte 8 (c % 2) + k of
// v[c / 2].
DQRELO_TARGET_AVX2 static inline void load_turned(__m256i (&v)[8], const uint8_t * src, int64_t step) {
    for (int k = 0; k < 8; k++) {
        v[k] = _mm256_loadu_si256((const __m256i *) (src + k * step));
    }
    for (int round = 0; round < 3; round++) {
        __m256i turned[8];
        for (int k = 0; k < 4; k++) {
            turned[2 * k]     = _mm256_unpacklo_epi8(v[k], v[k + 4]);
            turned[2 * k + 1] = _mm256_unpackhi_epi8(v[k], v[k + 4]);
        }
        memcpy(v, turned, sizeof(v));
    }
}

DQRELO_TARGET_AVX2 static void transpose_halves_avx2(const uint8_t * src, int64_t src_step, uint8_t * dst, int64_t dst_step) {
    __m256i even[8], odd[8];
    load_turned(even, src, 2 * src_step);
    load_turned(odd, src + src_step, 2 * src_step);
    for (int k = 0; k < 8; k++) {
        _mm256_storeu_si256((__m256i *) (dst + 2 * k * dst_step), _mm256_unpacklo_epi8(even[k], odd[k]));
        _mm256_storeu_si256((__m256i *) (dst + (2 * k + 1) * dst_step), _mm256_unpackhi_epi8(even[k], odd[k]));
    }
}
#endif

// Transposes both halves of 16 rows of 32 bytes, each 16 x 16 bytes. Rows of src are src_step bytes apart, those of dst dst_step. It turns
// itself round: a transposed chunk becomes rows.
static void transpose_halves(const uint8_t * src, int64_t src_step, uint8_t * dst, int64_t dst_step) {
#ifdef DQRELO_TARGET_AVX2
    if (__builtin_cpu_supports("avx2")) {
        transpose_halves_avx2(src, src_step, dst, dst_step);
        return;
    }
#endif
    for (int r = 0; r < 16; r++) {
        for (int b = 0; b < 16; b++) {
            dst[b * dst_step + r]      = src[r * src_step + b];
            dst[b * dst_step + 16 + r] = src[r * src_step + 16 + b];
        }
    }
}

// Returns where a transposed chunk of n_bytes a row has byte b of its rows, in units of 16 bytes.
static int64_t place_of(int64_t b, int64_t n_bytes) {
    const int64_t n_pairs = std::max<int64_t>(n_bytes - 16, 0);
    return b >= 16 ? 2 * (b - 16) + 1 : b < n_pairs ? 2 * b : b + n_pairs;
}

// Transposes a chunk that has n_bytes of each row only.
static void transpose_last_chunk(const uint8_t * rows, int64_t row_bytes, int64_t n_bytes, uint8_t * out) {
    uint8_t whole[GROUP_CHUNK] = {}, transposed[GROUP_CHUNK];
    for (int64_t r = 0; r < ROWS; r++) {
        memcpy(whole + r * CHUNK, rows + r * row_bytes, (size_t) n_bytes);
    }
    transpose_halves(whole, CHUNK, transposed, CHUNK);
    for (int64_t b = 0; b < n_bytes; b++) {
        memcpy(out + 16 * place_of(b, n_bytes), transposed + 16 * place_of(b, CHUNK), 16);
    }
}

// Transposes a block of n_rows, whole groups, that begins at `sign`; `rows` has room for it.
static void transpose_block(uint8_t * sign, int64_t n_rows, int64_t row_bytes, uint8_t * rows) {
    memcpy(rows, sign, (size_t) (n_rows * row_bytes));
    for (int64_t i = 0; i < n_rows; i += ROWS, rows += ROWS * row_bytes) {
        for (int64_t b = 0; b < row_bytes; b += CHUNK) {
            uint8_t * const out = sign + dqrelo_chunk_offset(i, n_rows, row_bytes, b / CHUNK);
            if (b + CHUNK <= row_bytes) {
                transpose_halves(rows + b, row_bytes, out, CHUNK);
            } else {
                transpose_last_chunk(rows + b, row_bytes, row_bytes - b, out);
            }
        }
    }
}

void dqrelo_transpose_signs(uint8_t * sign, int64_t n_rows, int64_t row_bytes) {
    std::vector<uint8_t> rows((size_t) (std::min<int64_t>(n_rows, DQRELO_BLOCK_ROWS) * row_bytes));
    for (int64_t i = 0; i + ROWS <= n_rows; i += DQRELO_BLOCK_ROWS) {
        const int64_t n_block = std::min<int64_t>((n_rows - i) / ROWS * ROWS, DQRELO_BLOCK_ROWS);
        transpose_block(sign + i * row_bytes, n_block, row_bytes, rows.data());
    }
}

void dqrelo_restore_signs(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, int64_t i, int64_t c0, int64_t n_chunks, uint8_t * out,
                          int64_t stride) {
    for (int64_t c = c0; c < c0 + n_chunks; c++, out += CHUNK) {
        const uint8_t * chunk   = sign + dqrelo_chunk_offset(i, n_rows, row_bytes, c);
        const int64_t   n_bytes = row_bytes - c * CHUNK;
        uint8_t         whole[GROUP_CHUNK];
        if (n_bytes < CHUNK) {
            memset(whole, 0, sizeof(whole));
            for (int64_t b = 0; b < n_bytes; b++) {
                memcpy(whole + 16 * place_of(b, CHUNK), chunk + 16 * place_of(b, n_bytes), 16);
            }
            chunk = whole;
        }
        transpose_halves(chunk, CHUNK, out, stride);
    }
}

void dqrelo_for_each_sign_matrix(const struct dqrelo_entry * e,
                                 void (*take)(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void * data), void * data) {
    for (int64_t m = 0; m < e->n_mat; m++) {
        for (int p = 0; p < e->n_planes; p++) {
            take(e->sign[p] + m * e->n_out * (e->n_in / 8), e->n_out, e->n_in / 8, data);
        }
        if (e->n_codes == 0) {
            continue;
        }
        take(e->vsign + m * e->n_codes * (e->n_in / 8), e->n_codes, e->n_in / 8, data);
        take(e->usign + m * e->n_out * (e->n_codes / 8), e->n_out, e->n_codes / 8, data);
    }
}

void dqrelo_transpose_entry(struct dqrelo_entry * e) {
    const auto transpose = [](const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void *) {
        dqrelo_transpose_signs(const_cast<uint8_t *>(sign), n_rows, row_bytes);
    };
    dqrelo_for_each_sign_matrix(e, transpose, nullptr);
    e->transposed = 1;
}
