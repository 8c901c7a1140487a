// signs.cuh: sums of signs times quantised activations, exactly, for a few rows of the matrix and of the batch.
//
// 16 lanes share a row of signs, 16 bytes a load. With b the bits, sum over columns of (+1 or -1) q = 2 sum(b q) - sum(q), and __dp4a adds
// four products of bytes b and q at once. Masking with 0x02020202 instead of shifting once more gives bytes 0 or 2: twice the sum, in an
// accumulator of its own. So 32 signs cost 3 shifts, 8 masks and, for each row of the batch, 8 __dp4a a byte plane.
#pragma once

#include "quantize.cuh"

static constexpr int ROW_LANES = 16; // lanes that share a row of signs

// 16 bytes of a row of signs from `offset` on, with zeros behind its end. `aligned` says that address and length of the row are multiples
// of 16 bytes.
static __device__ __forceinline__ uint4 load_signs(const uint8_t * row, int offset, int n_bytes, bool aligned) {
    if (aligned) {
        return *(const uint4 *) (row + offset);
    }
    uint64_t low = 0, high = 0;
#pragma unroll 1
    for (int b = min(n_bytes - offset, PIECE_BYTES) - 1; b >= 0; b--) {
        high = high << 8 | low >> 56;
        low  = low << 8 | row[offset + b];
    }
    return make_uint4((uint32_t) low, (uint32_t) (low >> 32), (uint32_t) high, (uint32_t) (high >> 32));
}

// Adds the products of q with the signs in bits 0 to 3 of the four bytes of a word: bits 0 and 2 are 1 and go to `once`, bits 1 and 3 are
// 2 and go to `twice`.
static __device__ __forceinline__ void dot_half_word(uint32_t bits, const int4 & q, int & once, int & twice) {
    const uint32_t later = bits >> 2;
    once                 = __dp4a((int) (bits & 0x01010101), q.x, once);
    twice                = __dp4a((int) (bits & 0x02020202), q.y, twice);
    once                 = __dp4a((int) (later & 0x01010101), q.z, once);
    twice                = __dp4a((int) (later & 0x02020202), q.w, twice);
}

// Sets sum[r][t] to the sum of q where the bit is set, modulo 2^32, for rows r of signs and t of the batch, in all 16 lanes. sign is the
// first of n_r <= R rows, q the first of T rows, q_step bytes apart.
template <int R, int T>
static __device__ __forceinline__ void sign_dots(const uint8_t * sign, int n_r, int n_in, const int8_t * q, int q_step, int32_t sum[R][T]) {
    const int  lane          = (int) threadIdx.x % ROW_LANES;
    const int  n_bytes       = n_in / 8;
    const int  n_pieces      = (n_bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    const bool aligned       = ((uintptr_t) sign | (uintptr_t) n_bytes) % PIECE_BYTES == 0;
    int        once[2][R][T] = {}, twice[2][R][T] = {}; // [0] sums the hi bytes, [1] the lo bytes.

    for (int piece = lane; piece < n_pieces; piece += ROW_LANES) {
        uint32_t words[R][4];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const uint4 s = load_signs(sign + min(r, n_r - 1) * n_bytes, piece * PIECE_BYTES, n_bytes, aligned);
            words[r][0]   = s.x;
            words[r][1]   = s.y;
            words[r][2]   = s.z;
            words[r][3]   = s.w;
        }
        const int4 * vectors = (const int4 *) (q + piece / CHUNK_PIECES * CHUNK_BYTES) + lane;
#pragma unroll 1 // Otherwise the compiler loads all of q at once and is short of registers.
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int v = 0; v < 4; v++) { // Each v is half a word.
#pragma unroll
                for (int t = 0; t < T; t++) {
                    const int4 * hi_lo = vectors + t * (q_step / 16) + (v / 2 * 4 + v % 2) * CHUNK_PIECES;
                    const int4   hi    = hi_lo[0];
                    const int4   lo    = hi_lo[2 * CHUNK_PIECES];
#pragma unroll
                    for (int r = 0; r < R; r++) {
                        const uint32_t bits = words[r][v / 2] >> (4 * (v % 2));
                        dot_half_word(bits, hi, once[0][r][t], twice[0][r][t]);
                        dot_half_word(bits, lo, once[1][r][t], twice[1][r][t]);
                    }
                }
            }
            vectors += 8 * CHUNK_PIECES;
#pragma unroll
            for (int r = 0; r < R; r++) {
                words[r][0] = words[r][2];
                words[r][1] = words[r][3];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int t = 0; t < T; t++) {
            uint32_t set = 256u * (uint32_t) (once[0][r][t] + twice[0][r][t] / 2) + (uint32_t) (once[1][r][t] + twice[1][r][t] / 2);
#pragma unroll
            for (int bits = ROW_LANES / 2; bits > 0; bits /= 2) {
                set += __shfl_xor_sync(0xffffffffu, set, bits);
            }
            sum[r][t] = (int32_t) set;
        }
    }
}
