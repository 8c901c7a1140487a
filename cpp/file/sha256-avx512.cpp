// sha256-avx512.cpp: sixteen messages at a time.
#include "file/sha256-kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#define SHA256_INLINE __attribute__((target("avx512f,avx512bw"), always_inline)) static inline
#include "file/sha256-lanes.h"

namespace dqrelo {

namespace {

struct avx512_words {
    using words                     = __m512i;
    static constexpr size_t N_LANES = 16;

    SHA256_INLINE words load_row(const uint32_t * row) { return _mm512_load_si512((const void *) row); }
    SHA256_INLINE void  store_row(uint32_t * row, words x) { _mm512_store_si512((void *) row, x); }
    SHA256_INLINE words set(uint32_t x) { return _mm512_set1_epi32((int) x); }
    SHA256_INLINE words add(words x, words y) { return _mm512_add_epi32(x, y); }
    // The constants are the results for the eight values of three bits.
    SHA256_INLINE words xor3(words x, words y, words z) { return _mm512_ternarylogic_epi32(x, y, z, 0x96); }
    SHA256_INLINE words choose(words x, words y, words z) { return _mm512_ternarylogic_epi32(x, y, z, 0xca); }
    SHA256_INLINE words majority(words x, words y, words z) { return _mm512_ternarylogic_epi32(x, y, z, 0xe8); }
    template <int N>
    SHA256_INLINE words shift_right(words x) {
        return _mm512_srli_epi32(x, N);
    }
    template <int N>
    SHA256_INLINE words rotate_right(words x) {
        return _mm512_ror_epi32(x, N);
    }

    // The blocks a to p of the messages are turned. Within 128 bits four words of four blocks are, and then these quarters of blocks:
    //
    //   a0 a1 ... a15        a0 b0 ... p0
    //   b0 b1 ... b15   ->   a1 b1 ... p1
    //   ...                  ...
    //   p0 p1 ... p15        a15 b15 ... p15
    SHA256_INLINE void load(words (&w)[16], const uint8_t * const (&data)[N_LANES], size_t at_bytes) {
        const __m512i swap =
            _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll)); // of the bytes in each word
        __m512i quads[4][4]; // [which four blocks][which word of each quarter]
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
            __m512i rows[4];
            for (int l = 0; l < 4; ++l) {
                rows[l] = _mm512_shuffle_epi8(_mm512_loadu_si512((const void *) (data[4 * g + l] + at_bytes)), swap);
            }
            const __m512i low0 = _mm512_unpacklo_epi32(rows[0], rows[1]), high0 = _mm512_unpackhi_epi32(rows[0], rows[1]);
            const __m512i low1 = _mm512_unpacklo_epi32(rows[2], rows[3]), high1 = _mm512_unpackhi_epi32(rows[2], rows[3]);
            quads[g][0] = _mm512_unpacklo_epi64(low0, low1);
            quads[g][1] = _mm512_unpackhi_epi64(low0, low1);
            quads[g][2] = _mm512_unpacklo_epi64(high0, high1);
            quads[g][3] = _mm512_unpackhi_epi64(high0, high1);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const __m512i even0 = _mm512_shuffle_i32x4(quads[0][k], quads[1][k], 0x88),
                          odd0  = _mm512_shuffle_i32x4(quads[0][k], quads[1][k], 0xdd);
            const __m512i even1 = _mm512_shuffle_i32x4(quads[2][k], quads[3][k], 0x88),
                          odd1  = _mm512_shuffle_i32x4(quads[2][k], quads[3][k], 0xdd);
            w[k]                = _mm512_shuffle_i32x4(even0, even1, 0x88);
            w[4 + k]            = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
            w[8 + k]            = _mm512_shuffle_i32x4(even0, even1, 0xdd);
            w[12 + k]           = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
        }
    }
};

} // namespace

// Sixteen messages take as long as this many by the SHA instructions of the same CPU (Intel Xeon of 2023: 3100 and 1750 MB/s).
static constexpr size_t N_FEW = 8;

__attribute__((target("avx512f,avx512bw"))) static void update(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
    static const sha256_kernel * const with_sha = sha256_kernel_x86();
    if (n_lanes == 1 && with_sha == nullptr) {
        sha256_update_portable(lanes, n_lanes, n_blocks);
    } else if (n_lanes <= N_FEW && with_sha != nullptr) {
        for (size_t l = 0; l < n_lanes; l += with_sha->n_lanes_max) {
            with_sha->update(lanes + l, n_lanes - l < with_sha->n_lanes_max ? n_lanes - l : with_sha->n_lanes_max, n_blocks);
        }
    } else {
        update_lanes<avx512_words>(lanes, n_lanes, n_blocks);
    }
}

const sha256_kernel * sha256_kernel_avx512() {
    static const sha256_kernel kernel = { "avx512", avx512_words::N_LANES, update };
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") ? &kernel : nullptr;
}

bool sha256_prefers_avx512() {
    return __builtin_cpu_is("intel");
}

} // namespace dqrelo

#else

namespace dqrelo {

const sha256_kernel * sha256_kernel_avx512() {
    return nullptr;
}

bool sha256_prefers_avx512() {
    return false;
}

} // namespace dqrelo

#endif
