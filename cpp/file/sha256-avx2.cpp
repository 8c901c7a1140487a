// sha256-avx2.cpp: eight messages at a time, for CPUs that have AVX2 and no SHA instructions (Intel's of before 2020).
#include "file/sha256-kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#define SHA256_INLINE __attribute__((target("avx2"), always_inline)) static inline
#include "file/sha256-lanes.h"

namespace dqrelo {

namespace {

struct avx2_words {
    using words                     = __m256i;
    static constexpr size_t N_LANES = 8;

    SHA256_INLINE words load_row(const uint32_t * row) { return _mm256_load_si256((const __m256i *) row); }
    SHA256_INLINE void  store_row(uint32_t * row, words x) { _mm256_store_si256((__m256i *) row, x); }
    SHA256_INLINE words set(uint32_t x) { return _mm256_set1_epi32((int) x); }
    SHA256_INLINE words add(words x, words y) { return _mm256_add_epi32(x, y); }
    SHA256_INLINE words xor3(words x, words y, words z) { return _mm256_xor_si256(_mm256_xor_si256(x, y), z); }
    SHA256_INLINE words choose(words x, words y, words z) { return _mm256_xor_si256(z, _mm256_and_si256(x, _mm256_xor_si256(y, z))); }
    SHA256_INLINE words majority(words x, words y, words z) {
        return _mm256_xor_si256(y, _mm256_and_si256(_mm256_xor_si256(x, y), _mm256_xor_si256(y, z)));
    }
    template <int N>
    SHA256_INLINE words shift_right(words x) {
        return _mm256_srli_epi32(x, N);
    }
    template <int N>
    SHA256_INLINE words rotate_right(words x) {
        return _mm256_or_si256(_mm256_srli_epi32(x, N), _mm256_slli_epi32(x, 32 - N));
    }

    // Eight words of each message a to h at a time are turned:
    //
    //   a0 a1 a2 ... a7        a0 b0 c0 ... h0
    //   b0 b1 b2 ... b7   ->   a1 b1 c1 ... h1
    //   ...                    ...
    //   h0 h1 h2 ... h7        a7 b7 c7 ... h7
    SHA256_INLINE void load(words (&w)[16], const uint8_t * const (&data)[N_LANES], size_t at_bytes) {
        const __m256i swap = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll)); // bytes of a word
        for (int half = 0; half < 16; half += 8) {
            __m256i rows[8];
            __m256i pairs[8];
            __m256i quads[8];
            for (int l = 0; l < 8; ++l) {
                rows[l] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *) (data[l] + at_bytes + 4 * half)), swap);
            }
            for (int i = 0; i < 8; i += 2) {
                pairs[i]     = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
            }
            for (int i = 0; i < 8; i += 4) {
                for (int k = 0; k < 2; ++k) {
                    quads[i + 2 * k]     = _mm256_unpacklo_epi64(pairs[i + k], pairs[i + 2 + k]);
                    quads[i + 2 * k + 1] = _mm256_unpackhi_epi64(pairs[i + k], pairs[i + 2 + k]);
                }
            }
            for (int i = 0; i < 4; ++i) {
                w[half + i]     = _mm256_permute2x128_si256(quads[i], quads[4 + i], 0x20);
                w[half + 4 + i] = _mm256_permute2x128_si256(quads[i], quads[4 + i], 0x31);
            }
        }
    }
};

} // namespace

__attribute__((target("avx2"))) static void update(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
    if (n_lanes == 1) { // Eight times the same would take longer.
        sha256_update_portable(lanes, n_lanes, n_blocks);
    } else {
        update_lanes<avx2_words>(lanes, n_lanes, n_blocks);
    }
}

const sha256_kernel * sha256_kernel_avx2() {
    static const sha256_kernel kernel = { "avx2", avx2_words::N_LANES, update };
    return __builtin_cpu_supports("avx2") ? &kernel : nullptr;
}

} // namespace dqrelo

#else

namespace dqrelo {

const sha256_kernel * sha256_kernel_avx2() {
    return nullptr;
}

} // namespace dqrelo

#endif
