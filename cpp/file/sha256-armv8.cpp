// sha256-armv8.cpp: with the SHA-256 instructions of AArch64. Only the functions with the attribute may have them.
#include "file/sha256-kernels.h"

// GCC has the intrinsics in a function with the attribute; Clang before version 16 only where all code may use the instructions.
#if defined(__aarch64__) && defined(__clang__) && (__clang_major__ >= 16 || defined(__ARM_FEATURE_SHA2))
#define DQRELO_TARGET_SHA2 __attribute__((target("sha2")))
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
#define DQRELO_TARGET_SHA2 __attribute__((target("+crypto"))) // SHA-256 and AES, which GCC does not use by itself.
#endif

#ifdef DQRELO_TARGET_SHA2

#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace dqrelo {

static bool is_supported() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 6)) != 0; // The bit is HWCAP_SHA2 of <asm/hwcap.h>.
#elif defined(__APPLE__)
    return true; // Every Apple silicon that runs macOS has them.
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(PF_ARM_V8_CRYPTO_INSTRUCTIONS_AVAILABLE) != 0;
#else
    return false;
#endif
}

// The instructions keep the state as {a, b, c, d} and {e, f, g, h}, and do four rounds at a time: a step of the loop over i. Its words of
// the schedule are w[i % 4]; from the fifth step on they follow from the four before.
template <size_t N_LANES>
DQRELO_TARGET_SHA2 static void update_lanes(const sha256_lane * lanes, size_t n_blocks) {
    uint32x4_t abcd[N_LANES];
    uint32x4_t efgh[N_LANES];
    for (size_t l = 0; l < N_LANES; ++l) {
        abcd[l] = vld1q_u32(lanes[l].state);
        efgh[l] = vld1q_u32(lanes[l].state + 4);
    }
    for (size_t at_bytes = 0; at_bytes < n_blocks * SHA256_BLOCK_BYTES; at_bytes += SHA256_BLOCK_BYTES) {
        uint32x4_t abcd_before[N_LANES];
        uint32x4_t efgh_before[N_LANES];
        uint32x4_t w[N_LANES][4];
        for (size_t l = 0; l < N_LANES; ++l) {
            abcd_before[l] = abcd[l];
            efgh_before[l] = efgh[l];
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
#pragma GCC unroll 2
            for (size_t l = 0; l < N_LANES; ++l) {
                uint32x4_t & next = w[l][i % 4];
                if (i < 4) { // The words of a message are big-endian.
                    next = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(lanes[l].data + at_bytes + 16 * i)));
                } else {
                    next = vsha256su0q_u32(next, w[l][(i + 1) % 4]);
                    next = vsha256su1q_u32(next, w[l][(i + 2) % 4], w[l][(i + 3) % 4]);
                }
                const uint32x4_t wk       = vaddq_u32(next, vld1q_u32(SHA256_K + 4 * i));
                const uint32x4_t abcd_old = abcd[l];
                abcd[l]                   = vsha256hq_u32(abcd_old, efgh[l], wk);
                efgh[l]                   = vsha256h2q_u32(efgh[l], abcd_old, wk);
            }
        }
        for (size_t l = 0; l < N_LANES; ++l) {
            abcd[l] = vaddq_u32(abcd[l], abcd_before[l]);
            efgh[l] = vaddq_u32(efgh[l], efgh_before[l]);
        }
    }
    for (size_t l = 0; l < N_LANES; ++l) {
        vst1q_u32(lanes[l].state, abcd[l]);
        vst1q_u32(lanes[l].state + 4, efgh[l]);
    }
}

static void update(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
    (n_lanes == 2 ? update_lanes<2> : update_lanes<1>) (lanes, n_blocks);
}

const sha256_kernel * sha256_kernel_armv8() {
    static const sha256_kernel kernel = { "armv8", 2, update };
    return is_supported() ? &kernel : nullptr;
}

} // namespace dqrelo

#else

namespace dqrelo {

const sha256_kernel * sha256_kernel_armv8() {
    return nullptr;
}

} // namespace dqrelo

#endif
