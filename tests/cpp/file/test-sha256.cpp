// test-sha256.cpp: the digests with the CPU's instructions are those of the portable code, bit for bit.
#include "file/sha256.h"
#include "hash/hash.h"
#include "support/check.h"
#include "support/gguf-builder.h"

using namespace dqrelo;

static std::string hex_of(const void * data, size_t n_bytes) {
    std::string hex;
    CHECK(sha256_hex(data, n_bytes, {}, hex));
    return hex;
}

// FIPS 180-4's examples, and a million times "a".
static void test_known() {
    check::begin("known digests");
    CHECK(hex_of("", 0) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(hex_of("abc", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    CHECK(hex_of(two_blocks.data(), two_blocks.size()) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    const std::string million(1000000, 'a');
    CHECK(hex_of(million.data(), million.size()) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void test_lengths() {
    check::begin("every length to 4 blocks, every alignment");
    testing::random_source r(1);
    const std::string      bytes = r.bytes(1024);
    bool                   good  = true;
    for (size_t n = 0; n <= 256; ++n) {
        for (size_t at = 0; at < 17; ++at) {
            good = good && hex_of(bytes.data() + at, n) == hash_sha256_hex(bytes.data() + at, n);
        }
    }
    CHECK(good);

    check::begin("around the ends of pieces");
    const size_t      n_piece = (size_t) 16 << 20;
    const std::string large   = r.bytes(2 * n_piece + 100);
    for (const size_t n : { n_piece - 1, n_piece, n_piece + 1, 2 * n_piece + 65 }) {
        CHECK(hex_of(large.data(), n) == hash_sha256_hex(large.data(), n));
    }
}

int main() {
    printf("instructions of the CPU: %s\n", has_sha256_instructions() ? "yes" : "no");
    test_known();
    test_lengths();
    return check::finish();
}
