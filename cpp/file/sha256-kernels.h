// sha256-kernels.h: the compression function of SHA-256, once for each set of instructions that has its own for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dqrelo {

constexpr size_t SHA256_BLOCK_BYTES = 64;

// No kernel takes more messages at a time.
constexpr size_t SHA256_LANES_MAX = 16;

// One message on its way: the eight words of its state (FIPS 180-4, section 6.2), and where its next block begins, at any address.
struct sha256_lane {
    uint32_t *      state;
    const uint8_t * data;
};

struct sha256_kernel {
    const char * name;
    size_t       n_lanes_max; // So many messages at a time take least time each.
    // Takes the next n_blocks of each of n_lanes (1 to n_lanes_max) messages into its state.
    void (*update)(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks);
};

// Those that are built in and that this CPU runs, best first. The last one is "portable": upstream's, which the others are compared with.
const std::vector<sha256_kernel> & sha256_kernels();

// "sha-ni", "armv8", "avx2" and "avx512". Each is null where it is not built in, or where this CPU does not run it. Of the first two one
// round waits for the one before, so a CPU has time for a second message's meanwhile: two take hardly longer than one (SHA-NI, Zen 4: 3400
// MB/s instead of 1800; a third adds 5 % on Zen 3 and an eighth on Zen 4 and Zen 5).
const sha256_kernel * sha256_kernel_x86();
const sha256_kernel * sha256_kernel_armv8();
const sha256_kernel * sha256_kernel_avx2();
const sha256_kernel * sha256_kernel_avx512();

// Whether this CPU takes less time with "avx512" than with "sha-ni": Intel's do (3100 and 1750 MB/s), AMD's of Zen 4 do not.
bool sha256_prefers_avx512();

// The kernel "portable", which takes any number of messages, one after the other.
void sha256_update_portable(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks);

// The constants of the 64 rounds: FIPS 180-4, section 4.2.2.
alignas(16) constexpr uint32_t SHA256_K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, //
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, //
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, //
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, //
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, //
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, //
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, //
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

} // namespace dqrelo
