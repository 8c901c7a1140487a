// avxvnni-sign-row.cpp: products of sign planes and one row of q for AVX-VNNI: Intel's CPUs without AVX-512 from 2021 on.
//
// It is the sum of avx512vnni-signs.cpp on vectors of half the width: P = sum_j b_j q_j with b_j = 1 where a sign bit is set, of the bytes
// of q. Eight bytes of signs are broadcast to the four lanes of a vector, of which lane k keeps bit k of each byte in one vector, and bit
// 4 + k in another; they stay where they are, so the sums of a lane are 2^k times too large until they are stored:
//
//   byte of the vector       0          1          2         ...      8          9         ...      31
//   b of column              0          8          16        ...      1          9         ...      59        and 4 further
//
// q is put into that sequence first, once for all rows of signs. Instructions for 256 signs: 16 vpdpbusd, 8 vpand, 4 broadcasts from
// memory. A core of Intel's does two vpdpbusd and a vpand in a cycle, so three rows at once are at the limit of both, and their sums take
// 12 of the 16 registers. Tables (avx2-sign-row.cpp) take 38 instructions, of which it does three a cycle.

#include "avx2.h"
#include "sign-requests.h"

#include <string.h>

static constexpr int R = 3; // rows of signs at once

// Adds the products of the unsigned bytes u and the signed bytes at s to acc. Without the prefix, assemblers take the instruction of
// AVX-512. This is assembler because GCC 12 copies the accumulators of the intrinsic in every step.
static inline void dot_i32x8(__m256i & acc, __m256i u, const int8_t * s) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(u), "m"(*(const __m256i *) s));
}

//
// q
//

// Turns the address of each of 64 bytes by one bit: byte 32 a + b goes to 2 b + a.
static inline void turn(__m128i (&v)[4]) {
    const __m128i in[4] = { v[0], v[1], v[2], v[3] };
    v[0]                = _mm_unpacklo_epi8(in[0], in[2]);
    v[1]                = _mm_unpackhi_epi8(in[0], in[2]);
    v[2]                = _mm_unpacklo_epi8(in[1], in[3]);
    v[3]                = _mm_unpackhi_epi8(in[1], in[3]);
}

// Puts byte 8 l + k of each 64 to 8 k + l.
static void interleave_q(const int8_t * q, int64_t n_bytes, int8_t * out) {
    for (int64_t b = 0; b < n_bytes; b += 64) {
        __m128i v[4];
        UNROLLED
        for (int i = 0; i < 4; i++) {
            v[i] = _mm_loadu_si128((const __m128i *) (q + b + 16 * i));
        }
        turn(v);
        turn(v);
        turn(v);
        UNROLLED
        for (int i = 0; i < 4; i++) {
            _mm_store_si128((__m128i *) (out + b + 16 * i), v[i]);
        }
    }
}

//
// signs
//

namespace { // Methods of classes would be weak symbols outside of it.

// Sums of products of R rows of signs, of their bits 0 to 3 and 4 to 7.
struct row_sums {
    __m256i hi[R][2], lo[R][2];

    row_sums() {
        UNROLLED
        for (int r = 0; r < R; r++) {
            hi[r][0] = hi[r][1] = lo[r][0] = lo[r][1] = _mm256_setzero_si256();
        }
    }

    // Adds the products of the signs of 64 columns of row r with their q.
    inline __attribute__((always_inline)) void add(int r, long long signs, const int8_t * q) {
        const __m256i low  = _mm256_setr_epi64x(0x0101010101010101, 0x0202020202020202, 0x0404040404040404, 0x0808080808080808);
        const __m256i all  = _mm256_set1_epi64x(signs);
        const __m256i b[2] = { _mm256_and_si256(all, low), _mm256_and_si256(all, _mm256_slli_epi64(low, 4)) };
        UNROLLED
        for (int h = 0; h < 2; h++) {
            dot_i32x8(hi[r][h], b[h], q + 32 * h);
            dot_i32x8(lo[r][h], b[h], q + DQRELO_Q_BLOCK + 32 * h);
        }
    }

    // Stores 2 P - sum of the rows, or the first n_i of them.
    inline void store(int n_i, int32_t sum, int32_t * out) const {
        const __m128i p = sums_i32x4(p_of(0), p_of(1), p_of(2), _mm256_setzero_si256());
        _mm_maskstore_epi32(out, lanes_i32x4(n_i < R ? n_i : R), _mm_sub_epi32(_mm_slli_epi32(p, 1), _mm_set1_epi32(sum)));
    }

private:
    // Undoes the 2^k. Of hi only what is left of it modulo 2^32 is needed, but lo must have fitted.
    inline __m256i p_of(int r) const {
        const __m256i k     = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
        const __m256i four  = _mm256_set1_epi32(4);
        const __m256i up    = _mm256_sub_epi32(four, k);
        const __m256i upper = _mm256_add_epi32(_mm256_sllv_epi32(hi[r][0], _mm256_add_epi32(up, four)), _mm256_sllv_epi32(hi[r][1], up));
        const __m256i lower = _mm256_add_epi32(_mm256_srav_epi32(lo[r][0], k), _mm256_srav_epi32(lo[r][1], _mm256_add_epi32(k, four)));
        return _mm256_add_epi32(upper, lower);
    }
};

} // namespace

// Returns the last n_bytes < 8 bytes of a row's signs, and anything behind them, where q is zero. Signs can be read up to `end`.
static inline long long last_signs(const uint8_t * sign, int64_t n_bytes, const uint8_t * end) {
    long long bits = 0;
    if (end - sign >= (int64_t) sizeof(bits)) {
        memcpy(&bits, sign, sizeof(bits));
    } else {
        memcpy(&bits, sign, (size_t) n_bytes);
    }
    return bits;
}

// Sets out[i] of a tile. q is interleaved. Returns what is to be asked for afterwards.
static sign_requests multiply_tile(const struct dqrelo_sign_tile & tile, const int8_t * q, int32_t sum, int64_t n, sign_requests signs,
                                   struct dqrelo_ahead * after) {
    struct dqrelo_ahead   ahead = *after; // A copy may stay in registers.
    const uint8_t * const end   = tile.sign + tile.n_i * (n / 8);
    for (int i = 0; i < tile.n_i; i += R) {
        const uint8_t * row[R]; // Behind the end the last row is taken again.
        row[0] = tile.sign + i * (n / 8);
        for (int r = 1; r < R; r++) {
            row[r] = row[r - 1] + (i + r < tile.n_i ? n / 8 : 0);
        }
        row_sums sums;
        for (int64_t b = 0; b < n / 64; b++) {
            if (b % 8 % 3 == 0) { // R rows of eight blocks are three cache lines.
                signs.ask<DQRELO_CACHE_2>();
                prefetch_ahead(ahead);
            }
            UNROLLED
            for (int r = 0; r < R; r++) {
                long long bits;
                memcpy(&bits, row[r] + 8 * b, sizeof(bits));
                sums.add(r, bits, q + b * (2 * DQRELO_Q_BLOCK));
            }
        }
        if (n % 64 > 0) {
            const int64_t b = n / 64;
            UNROLLED
            for (int r = 0; r < R; r++) {
                sums.add(r, last_signs(row[r] + 8 * b, n % 64 / 8, end), q + b * (2 * DQRELO_Q_BLOCK));
            }
        }
        sums.store(tile.n_i - i, sum, tile.out + i);
    }
    *after = ahead;
    return signs;
}

// q of so many columns lies on the stack, and in the second cache.
static constexpr int64_t MAX_COLUMNS = 32768;

int64_t tables_bytes_avxvnni(int64_t n) {
    return n > MAX_COLUMNS ? tables_bytes_avx2(n) : dqrelo_q_bytes(n);
}

void make_tables_avxvnni(const int8_t * q, int64_t n, void * tables, struct dqrelo_act * act) {
    if (n > MAX_COLUMNS) {
        make_tables_avx2(q, n, tables, act);
        return;
    }
    interleave_q(q, dqrelo_q_bytes(n), (int8_t *) tables);
    act->tables = tables;
}

void sign_dots_avxvnni(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                       const struct dqrelo_act * act, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * ahead) {
    if (n_t > 1 || n > MAX_COLUMNS) {
        sign_dots_avx2(tiles, n_tiles, q, q_stride, act, n_t, n, ld, ahead);
        return;
    }
    alignas(64) int8_t interleaved[2 * MAX_COLUMNS];
    if (act->tables == nullptr) {
        interleave_q(q, dqrelo_q_bytes(n), interleaved);
    }
    sign_requests signs(tiles, n_tiles, n / 8);
    signs.skip(prefetch_bytes(DQRELO_CACHE_2));
    for (int k = 0; k < n_tiles; k++) {
        signs = multiply_tile(tiles[k], act->tables ? (const int8_t *) act->tables : interleaved, act->sum, n, signs, ahead);
    }
}
