// test-sha256.cpp: every kernel that this CPU runs gives the digests of upstream's code, bit for bit; so do lanes and threads.
//   test-sha256        all of them
//   test-sha256 NAME   the same, where NAME must be the best one
#include "file/sha256.h"
#include "hash/hash.h"
#include "support/check.h"
#include "support/gguf-builder.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

using namespace dqrelo;

static bool sha256_hex(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, size_t n_threads,
                       const is_aborted_fn & is_aborted, std::vector<std::string> & hex) {
    return sha256_hashing(inputs, kernel, n_threads, {}).finish(is_aborted, hex);
}

static std::string hex_of(const sha256_kernel & kernel, const void * data, size_t n_bytes) {
    std::vector<std::string> hex;
    CHECK(sha256_hex({ { data, n_bytes } }, kernel, 1, {}, hex));
    return hex.at(0);
}

static std::vector<sha256_input> inputs_of(const std::vector<std::string> & texts) {
    std::vector<sha256_input> inputs;
    for (const std::string & text : texts) {
        inputs.push_back({ text.data(), text.size() });
    }
    return inputs;
}

// FIPS 180-4's examples, and a million times "a".
static void test_known(const sha256_kernel & kernel) {
    check::begin("  known digests");
    const auto hex = [&](const std::string & text) { return hex_of(kernel, text.data(), text.size()); };
    CHECK(hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(hex("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu") ==
          "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    CHECK(hex(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void test_lengths(const sha256_kernel & kernel) {
    check::begin("  every length to 300, every alignment");
    testing::random_source r(1);
    const std::string      bytes = r.bytes(1024);
    bool                   good  = true;
    for (size_t n = 0; n <= 300; ++n) {
        for (size_t at = 0; at < 17; ++at) {
            good = good && hex_of(kernel, bytes.data() + at, n) == hash_sha256_hex(bytes.data() + at, n);
        }
    }
    CHECK(good);

    check::begin("  around the ends of pieces");
    const size_t      n_piece = (size_t) 8 << 20;
    const std::string large   = r.bytes(2 * n_piece + 100);
    for (const size_t n : { n_piece - 1, n_piece, n_piece + 1, 2 * n_piece + 65 }) {
        CHECK(hex_of(kernel, large.data(), n) == hash_sha256_hex(large.data(), n));
    }
}

// Messages in calls of the kernel of any length, any number of them at a time.
static void test_chunks(const sha256_kernel & kernel) {
    check::begin("  blocks in chunks, in one lane and in several");
    testing::random_source r(2);
    constexpr size_t       n_blocks = 40;
    constexpr size_t       n_bytes  = n_blocks * SHA256_BLOCK_BYTES + 1; // The messages begin at any address.
    bool                   good     = true;
    for (int i = 0; i < 200; ++i) {
        const size_t      n     = kernel.n_lanes_max;
        const std::string bytes = r.bytes(n * n_bytes);
        uint32_t          state[SHA256_LANES_MAX][8];
        uint32_t          expected[SHA256_LANES_MAX][8];
        sha256_lane       lanes[SHA256_LANES_MAX];
        for (size_t l = 0; l < n; ++l) {
            memcpy(state[l], SHA256_K + l, sizeof(state[l])); // Any state will do.
            memcpy(expected[l], SHA256_K + l, sizeof(expected[l]));
            lanes[l]                = { state[l], (const uint8_t *) bytes.data() + l * n_bytes };
            const sha256_lane whole = { expected[l], lanes[l].data };
            sha256_update_portable(&whole, 1, n_blocks);
        }
        for (size_t at = 0; at < n_blocks;) {
            const size_t n_here = std::min<size_t>(n_blocks - at, r.below(9));
            for (size_t l = 0; l < n;) {
                const size_t n_together = std::min<size_t>(n - l, 1 + r.below(n));
                kernel.update(lanes + l, n_together, n_here);
                l += n_together;
            }
            for (size_t l = 0; l < n; ++l) {
                lanes[l].data += n_here * SHA256_BLOCK_BYTES;
            }
            at += n_here;
        }
        good = good && memcmp(state, expected, n * sizeof(state[0])) == 0;
    }
    CHECK(good);
}

// Messages of different lengths share lanes and threads; each keeps its place.
static void test_side_by_side(const sha256_kernel & kernel) {
    check::begin("  messages side by side, on threads");
    testing::random_source   r(3);
    std::vector<std::string> texts;
    std::vector<std::string> expected;
    for (size_t i = 0; i < 60; ++i) {
        texts.push_back(r.bytes(i % 5 == 0 ? 0 : i % 7 == 0 ? r.below(200000) : r.below(300)));
        expected.push_back(hash_sha256_hex(texts.back().data(), texts.back().size()));
    }
    for (size_t n : { 0, 1, 2, 3, 60 }) {
        const std::vector<std::string> some(texts.begin(), texts.begin() + (ptrdiff_t) n);
        for (size_t n_threads : { 1, 2, 5 }) {
            std::vector<std::string> hex = { "what was there before" };
            CHECK(sha256_hex(inputs_of(some), kernel, n_threads, {}, hex));
            CHECK(hex == std::vector<std::string>(expected.begin(), expected.begin() + (ptrdiff_t) n));
        }
    }
}

// Bytes that come a few at a time, and are something else until then.
static void test_arrival(const sha256_kernel & kernel) {
    check::begin("  bytes that arrive while they are hashed");
    testing::random_source r(4);
    for (size_t n_threads : { 1, 2, 4 }) {
        const std::string         bytes = r.bytes(200000);
        std::string               memory(bytes.size(), '?');
        std::vector<sha256_input> inputs;
        std::vector<std::string>  expected;
        for (size_t at = 0; at < bytes.size();) {
            const size_t n = std::min<size_t>(bytes.size() - at, r.below(4) == 0 ? r.below(70) : r.below(30000));
            inputs.push_back({ memory.data() + at, n });
            expected.push_back(hash_sha256_hex(bytes.data() + at, n));
            at += n + r.below(3);
        }
        std::vector<const char *> ends; // what was said of each input
        std::atomic<bool>         has_gone_back{ false };
        for (const sha256_input & input : inputs) {
            ends.push_back((const char *) input.data);
        }
        sha256_hashing hashing(inputs, kernel, n_threads, {}, [&](size_t i, const void * end) {
            has_gone_back = has_gone_back || end < ends[i];
            ends[i]       = (const char *) end;
        });
        for (size_t at = 0; at < bytes.size();) {
            const size_t n = std::min<size_t>(bytes.size() - at, r.below(2000));
            memcpy(&memory[at], &bytes[at], n);
            at += n;
            hashing.arrived(memory.data() + at);
        }
        std::vector<std::string> hex;
        CHECK(hashing.finish({}, hex));
        CHECK(hex == expected);
        CHECK(!has_gone_back);
        for (size_t i = 0; i < inputs.size(); ++i) {
            CHECK(ends[i] == (const char *) inputs[i].data + inputs[i].n_bytes);
        }
    }

    for (size_t n_threads : { 1, 2, 4 }) {
        check::begin("  what is called for an input throws");
        const std::string               bytes(1 << 20, 'a');
        const std::vector<sha256_input> inputs(20, { bytes.data(), bytes.size() });
        std::vector<std::string>        hex;
        bool                            has_thrown = false;
        sha256_hashing                  hashing(inputs, kernel, n_threads, {}, [](size_t i, const void *) {
            if (i == 3) {
                throw std::bad_alloc();
            }
        });
        try {
            hashing.finish({}, hex);
        } catch (const std::bad_alloc &) {
            has_thrown = true;
        }
        CHECK(has_thrown);
    }

    check::begin("  bytes that never arrive");
    const std::string    bytes(1000, 'a');
    const sha256_hashing hashing({ { bytes.data(), bytes.size() } }, kernel, 3, {}); // Its destructor waits for no byte.
}

static std::atomic<size_t> n_blocks_alone;

// Messages that lie one behind the other are hashed two at a time, although the bytes of the first come first.
static void test_lanes_are_shared() {
    check::begin("messages that arrive one after the other share lanes");
    const sha256_kernel kernel = { "two lanes", 2, [](const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
                                      n_blocks_alone += n_lanes == 1 ? n_blocks : 0;
                                      sha256_update_portable(lanes, n_lanes, n_blocks);
                                  } };
    constexpr size_t          n_input = (size_t) 1 << 18;
    const std::string         bytes(32 * n_input, 'a');
    std::vector<sha256_input> inputs;
    for (size_t at = 0; at < bytes.size(); at += n_input) {
        inputs.push_back({ bytes.data() + at, n_input });
    }
    sha256_hashing hashing(inputs, kernel, 2, [] { return true; });
    for (size_t at = 0; at < bytes.size(); at += n_input / 4) {
        hashing.arrived(bytes.data() + at);
        std::this_thread::sleep_for(std::chrono::milliseconds(2)); // The thread hashes in the meantime what it may.
    }
    std::vector<std::string> hex;
    CHECK(hashing.finish({}, hex));
    CHECK(hex == std::vector<std::string>(inputs.size(), hash_sha256_hex(bytes.data(), n_input)));
    CHECK(n_blocks_alone <= 4 * n_input / SHA256_BLOCK_BYTES); // the last ones, and those that two threads share out
}

// Nor has one that is shorter than a block a lane, though it takes its turn.
static void test_short_messages_take_no_lane() {
    check::begin("messages of less than a block take no lane");
    n_blocks_alone             = 0;
    const sha256_kernel kernel = { "two lanes", 2, [](const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
                                      n_blocks_alone += n_lanes == 1 ? n_blocks : 0;
                                      sha256_update_portable(lanes, n_lanes, n_blocks);
                                  } };
    std::vector<std::string> texts;
    std::vector<std::string> expected;
    for (int i = 0; i < 40; ++i) { // Signs, a scale, U and V, as in a file.
        texts.push_back(std::string(i % 4 == 1 ? (i % 8 == 1 ? 4 : 0) : (size_t) 1 << 18, (char) i));
        expected.push_back(hash_sha256_hex(texts.back().data(), texts.back().size()));
    }
    std::vector<std::string> hex;
    CHECK(sha256_hex(inputs_of(texts), kernel, 1, {}, hex));
    CHECK(hex == expected);
    CHECK(n_blocks_alone == 0);
}

static std::atomic<size_t> n_lanes_most;

// Eight lanes for eight messages, and two threads: no thread may take more than half of them.
static void test_last_messages_are_shared_out() {
    check::begin("the last messages are shared out to threads");
    n_lanes_most               = 0;
    const sha256_kernel kernel = { "eight lanes", 8, [](const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
                                      n_lanes_most = std::max(n_lanes_most.load(), n_lanes);
                                      sha256_update_portable(lanes, n_lanes, n_blocks);
                                  } };
    const std::vector<std::string> texts(8, std::string((size_t) 1 << 20, 'a'));
    std::vector<std::string>       hex;
    CHECK(sha256_hex(inputs_of(texts), kernel, 2, {}, hex));
    CHECK(hex == std::vector<std::string>(8, hash_sha256_hex(texts[0].data(), texts[0].size())));
    CHECK(n_lanes_most == 4);
}

static std::vector<size_t> n_lanes_of_calls;

// One that is as long as all others together would be the last by far, in a lane beside them.
static void test_long_message_goes_first() {
    check::begin("a long message has the kernel to itself");
    n_lanes_of_calls.clear();
    const sha256_kernel kernel = { "eight lanes", 8, [](const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
                                      n_lanes_of_calls.push_back(n_lanes);
                                      sha256_update_portable(lanes, n_lanes, n_blocks);
                                  } };
    std::vector<std::string> texts(64, std::string((size_t) 64 << 10, 'a'));
    texts.insert(texts.begin(), std::string((size_t) 4 << 20, 'b'));
    std::vector<std::string> hex;
    CHECK(sha256_hex(inputs_of(texts), kernel, 1, {}, hex));
    CHECK(hex.front() == hash_sha256_hex(texts[0].data(), texts[0].size()) &&
          hex.back() == hash_sha256_hex(texts[1].data(), texts[1].size()));
    CHECK(n_lanes_of_calls.front() == 1);
    CHECK(std::count(n_lanes_of_calls.begin(), n_lanes_of_calls.end(), 8) > 4); // The others still share it.
}

static void test_abort(const sha256_kernel & kernel) {
    check::begin("  an end from outside");
    const std::vector<std::string> texts(8, std::string((size_t) 9 << 20, 'a'));
    for (size_t n_threads : { 1, 3 }) {
        int                      n_asked = 0;
        std::vector<std::string> hex;
        CHECK(!sha256_hex(inputs_of(texts), kernel, n_threads, [&] { return ++n_asked == 2; }, hex));
        CHECK(n_asked >= 2);
    }
}

int main(int argc, char ** argv) {
    const auto & kernels = sha256_kernels();
    if (argc > 1) {
        check::begin("the best kernel");
        CHECK(strcmp(kernels.front().name, argv[1]) == 0);
    }
    check::begin("the portable kernel is the last");
    CHECK(strcmp(kernels.back().name, "portable") == 0);
    for (const sha256_kernel & kernel : kernels) {
        check::begin(kernel.name);
        test_known(kernel);
        test_lengths(kernel);
        test_chunks(kernel);
        test_side_by_side(kernel);
        test_arrival(kernel);
        test_abort(kernel);
    }
    test_lanes_are_shared();
    test_short_messages_take_no_lane();
    test_last_messages_are_shared_out();
    test_long_message_goes_first();
    return check::finish();
}
