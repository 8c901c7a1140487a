// sha256.cpp: upstream's SHA-256, with the instructions of x86 (SHA-NI) for whole blocks where the CPU has them.
#include "file/sha256.h"

extern "C" {
#include "hash/sha256/sha256.h"
}

#include <algorithm>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#include <immintrin.h>
#define DQRELO_SHA_NI
#endif

namespace dqrelo {

static constexpr size_t N_BLOCK_BYTES = 64;

// A moment on the slowest CPU: whoever waits wants a sign of life every few seconds.
static constexpr size_t N_PIECE_BYTES = (size_t) 16 << 20;

#ifdef DQRELO_SHA_NI

// FIPS 180-4, section 4.2.2
alignas(16) static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, //
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, //
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, //
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, //
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, //
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, //
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, //
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

bool has_sha256_instructions() {
    unsigned   eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool has_sse41 = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_SSE4_1) != 0;
    return has_sse41 && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & (1u << 29)) != 0; // SHA
}

// The instructions keep the eight words of the state as {f, e, b, a} and {h, g, d, c}, and do two rounds at a time. A step of the loop is
// four rounds, whose words of the schedule are w[i % 4]; from the fifth on they follow from the four before.
__attribute__((target("sha,sse4.1"))) static void update_blocks(uint32_t * state, const uint8_t * data, size_t n_blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll); // of the bytes in each word
    const __m128i abcd = _mm_loadu_si128((const __m128i *) state);
    const __m128i efgh = _mm_loadu_si128((const __m128i *) (state + 4));
    const __m128i cdab = _mm_shuffle_epi32(abcd, 0xb1);
    const __m128i hgfe = _mm_shuffle_epi32(efgh, 0x1b);
    __m128i       feba = _mm_alignr_epi8(cdab, hgfe, 8);
    __m128i       hgdc = _mm_blend_epi16(hgfe, cdab, 0xf0);
    for (; n_blocks > 0; --n_blocks, data += N_BLOCK_BYTES) {
        const __m128i feba_before = feba;
        const __m128i hgdc_before = hgdc;
        __m128i       w[4];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            __m128i & next = w[i % 4];
            if (i < 4) {
                next = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) data + i), swap);
            } else {
                const __m128i & last = w[(i + 3) % 4];
                next                 = _mm_sha256msg1_epu32(next, w[(i + 1) % 4]);
                next                 = _mm_add_epi32(next, _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
                next                 = _mm_sha256msg2_epu32(next, last);
            }
            const __m128i wk = _mm_add_epi32(next, _mm_load_si128((const __m128i *) K + i));
            hgdc             = _mm_sha256rnds2_epu32(hgdc, feba, wk);
            feba             = _mm_sha256rnds2_epu32(feba, hgdc, _mm_shuffle_epi32(wk, 0x0e));
        }
        feba = _mm_add_epi32(feba, feba_before);
        hgdc = _mm_add_epi32(hgdc, hgdc_before);
    }
    const __m128i abef = _mm_shuffle_epi32(feba, 0x1b);
    const __m128i ghcd = _mm_shuffle_epi32(hgdc, 0xb1);
    _mm_storeu_si128((__m128i *) state, _mm_blend_epi16(abef, ghcd, 0xf0));
    _mm_storeu_si128((__m128i *) (state + 4), _mm_alignr_epi8(ghcd, abef, 8));
}

#else

bool has_sha256_instructions() {
    return false;
}

static void update_blocks(uint32_t *, const uint8_t *, size_t) {}

#endif

// `hash` stands at the start of a block.
static void update(sha256_t & hash, const uint8_t * data, size_t n_bytes) {
    static const bool is_fast = has_sha256_instructions();
    size_t            n_done  = 0;
    if (is_fast) {
        n_done = n_bytes / N_BLOCK_BYTES * N_BLOCK_BYTES;
        update_blocks(hash.state, data, n_done / N_BLOCK_BYTES);
        hash.count += n_done;
    }
    sha256_update(&hash, data + n_done, n_bytes - n_done);
}

bool sha256_hex(const void * data, size_t n_bytes, const is_aborted_fn & is_aborted, std::string & hex) {
    sha256_t hash;
    sha256_init(&hash);
    for (size_t at = 0; at < n_bytes; at += N_PIECE_BYTES) {
        if (is_aborted && is_aborted()) {
            return false;
        }
        update(hash, (const uint8_t *) data + at, std::min(N_PIECE_BYTES, n_bytes - at));
    }
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_final(&hash, digest);
    hex.clear();
    for (const uint8_t byte : digest) {
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    return true;
}

} // namespace dqrelo
