// sha256-x86.cpp: with the SHA instructions of x86-64 (SHA-NI). Only the functions with the attribute may have them.
#include "file/sha256-kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>
#include <immintrin.h>

namespace dqrelo {

static bool is_supported() {
    unsigned   eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool has_sse41 = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_SSE4_1) != 0;
    return has_sse41 && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & (1u << 29)) != 0; // SHA
}

// The instructions keep the eight words of the state as {f, e, b, a} and {h, g, d, c}, and do two rounds at a time. A step of the loop over
// i is four rounds, whose words of the schedule are w[i % 4]; from the fifth on they follow from the four before.
template <size_t N_LANES>
__attribute__((target("sha,sse4.1"))) static void update_lanes(const sha256_lane * lanes, size_t n_blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll); // of the bytes in each word
    __m128i       feba[N_LANES];
    __m128i       hgdc[N_LANES];
    for (size_t l = 0; l < N_LANES; ++l) {
        const __m128i abcd = _mm_loadu_si128((const __m128i *) lanes[l].state);
        const __m128i efgh = _mm_loadu_si128((const __m128i *) (lanes[l].state + 4));
        const __m128i cdab = _mm_shuffle_epi32(abcd, 0xb1);
        const __m128i hgfe = _mm_shuffle_epi32(efgh, 0x1b);
        feba[l]            = _mm_alignr_epi8(cdab, hgfe, 8);
        hgdc[l]            = _mm_blend_epi16(hgfe, cdab, 0xf0);
    }
    for (size_t at_bytes = 0; at_bytes < n_blocks * SHA256_BLOCK_BYTES; at_bytes += SHA256_BLOCK_BYTES) {
        __m128i feba_before[N_LANES];
        __m128i hgdc_before[N_LANES];
        __m128i w[N_LANES][4];
        for (size_t l = 0; l < N_LANES; ++l) {
            feba_before[l] = feba[l];
            hgdc_before[l] = hgdc[l];
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
#pragma GCC unroll 3
            for (size_t l = 0; l < N_LANES; ++l) {
                __m128i & next = w[l][i % 4];
                if (i < 4) {
                    next = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) (lanes[l].data + at_bytes) + i), swap);
                } else {
                    const __m128i & last = w[l][(i + 3) % 4];
                    next                 = _mm_sha256msg1_epu32(next, w[l][(i + 1) % 4]);
                    next                 = _mm_add_epi32(next, _mm_alignr_epi8(last, w[l][(i + 2) % 4], 4));
                    next                 = _mm_sha256msg2_epu32(next, last);
                }
                const __m128i wk = _mm_add_epi32(next, _mm_load_si128((const __m128i *) SHA256_K + i));
                hgdc[l]          = _mm_sha256rnds2_epu32(hgdc[l], feba[l], wk);
                feba[l]          = _mm_sha256rnds2_epu32(feba[l], hgdc[l], _mm_shuffle_epi32(wk, 0x0e));
            }
        }
        for (size_t l = 0; l < N_LANES; ++l) {
            feba[l] = _mm_add_epi32(feba[l], feba_before[l]);
            hgdc[l] = _mm_add_epi32(hgdc[l], hgdc_before[l]);
        }
    }
    for (size_t l = 0; l < N_LANES; ++l) {
        const __m128i abef = _mm_shuffle_epi32(feba[l], 0x1b);
        const __m128i ghcd = _mm_shuffle_epi32(hgdc[l], 0xb1);
        _mm_storeu_si128((__m128i *) lanes[l].state, _mm_blend_epi16(abef, ghcd, 0xf0));
        _mm_storeu_si128((__m128i *) (lanes[l].state + 4), _mm_alignr_epi8(ghcd, abef, 8));
    }
}

// An instruction waits for the one before, so lanes fill the time of others: 2.1 GB/s with one, 3.1 with two, 3.5 with three, for four of
// which there are not enough registers (2.8; Zen 5).
static void update(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
    (n_lanes == 3 ? update_lanes<3> : n_lanes == 2 ? update_lanes<2> : update_lanes<1>) (lanes, n_blocks);
}

const sha256_kernel * sha256_kernel_x86() {
    static const sha256_kernel kernel = { "sha-ni", 3, update };
    return is_supported() ? &kernel : nullptr;
}

} // namespace dqrelo

#else

namespace dqrelo {

const sha256_kernel * sha256_kernel_x86() {
    return nullptr;
}

} // namespace dqrelo

#endif
