// sha256.cpp: shares messages out to threads, and on each to the lanes of a kernel.
#include "file/sha256.h"

extern "C" {
#include "hash/sha256/sha256.h"
}

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <numeric>
#include <system_error>
#include <thread>

namespace dqrelo {

namespace {

// A moment on the slowest CPU: whoever waits wants a sign of life every few seconds.
constexpr size_t N_PIECE_BLOCKS = ((size_t) 8 << 20) / SHA256_BLOCK_BYTES;

// What makes a further thread worth its start, and how many leave the memory's bandwidth to others.
constexpr size_t N_THREAD_BYTES = (size_t) 16 << 20;
constexpr size_t N_THREADS_MAX  = 4;

constexpr auto ASK_PERIOD = std::chrono::milliseconds(50);

std::string hex_of(sha256_t & hash) {
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_final(&hash, digest);
    std::string hex;
    for (const uint8_t byte : digest) {
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    return hex;
}

// Inputs that threads take one after another.
class work {
public:
    work(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, std::vector<std::string> & hex) :
        inputs(inputs), kernel(kernel), order(inputs.size()), hex(hex) {
        // Long ones first, so that all threads end at about the same time.
        std::iota(order.begin(), order.end(), (size_t) 0);
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return inputs[a].n_bytes > inputs[b].n_bytes; });
    }

    // Hashes until nothing is left to begin, or it was ended.
    void run(const is_aborted_fn & is_aborted);

    // Makes every run() return.
    void end() { is_ended = true; }
    bool was_ended() const { return is_ended; }

private:
    struct message {
        size_t          input;
        sha256_t        hash;
        const uint8_t * data; // what is left
        size_t          n_bytes;
    };

    bool begin(message & next);
    void update(message * messages, size_t n) const;
    bool finish(message & message) const;

    const std::vector<sha256_input> & inputs;
    const sha256_kernel &             kernel;
    std::vector<size_t>               order;
    std::vector<std::string> &        hex;
    std::atomic<size_t>               n_begun{ 0 };
    std::atomic<bool>                 is_ended{ false };
};

bool work::begin(message & next) {
    const size_t i = n_begun++;
    if (i >= order.size()) {
        return false;
    }
    next = { order[i], {}, (const uint8_t *) inputs[order[i]].data, inputs[order[i]].n_bytes };
    sha256_init(&next.hash);
    return true;
}

// Takes as many whole blocks as all of them have.
void work::update(message * messages, size_t n) const {
    size_t      n_blocks = N_PIECE_BLOCKS;
    sha256_lane lanes[SHA256_LANES];
    for (size_t l = 0; l < n; ++l) {
        n_blocks = std::min(n_blocks, messages[l].n_bytes / SHA256_BLOCK_BYTES);
        lanes[l] = { messages[l].hash.state, messages[l].data };
    }
    kernel.update(lanes, n, n_blocks);
    for (size_t l = 0; l < n; ++l) {
        messages[l].hash.count += n_blocks * SHA256_BLOCK_BYTES;
        messages[l].data += n_blocks * SHA256_BLOCK_BYTES;
        messages[l].n_bytes -= n_blocks * SHA256_BLOCK_BYTES;
    }
}

// Returns whether no whole block was left, so that the digest is made.
bool work::finish(message & message) const {
    if (message.n_bytes >= SHA256_BLOCK_BYTES) {
        return false;
    }
    sha256_update(&message.hash, message.data, message.n_bytes);
    hex[message.input] = hex_of(message.hash);
    return true;
}

void work::run(const is_aborted_fn & is_aborted) {
    message messages[SHA256_LANES];
    size_t  n = 0;
    for (;;) {
        if (is_aborted && is_aborted()) {
            end();
        }
        if (is_ended) {
            return;
        }
        while (n < SHA256_LANES && begin(messages[n])) {
            ++n;
        }
        if (n == 0) {
            return;
        }
        update(messages, n);
        n = (size_t) (std::remove_if(messages, messages + n, [&](message & message) { return finish(message); }) - messages);
    }
}

} // namespace

size_t sha256_n_threads(const std::vector<sha256_input> & inputs) {
    size_t n_bytes = 0;
    for (const sha256_input & input : inputs) {
        n_bytes += input.n_bytes;
    }
    const size_t n_cores = std::max(1u, std::thread::hardware_concurrency());
    return std::min({ n_cores, N_THREADS_MAX, 1 + n_bytes / N_THREAD_BYTES });
}

bool sha256_hex(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, size_t n_threads, const is_aborted_fn & is_aborted,
                std::vector<std::string> & hex) {
    hex.assign(inputs.size(), "");
    work                           work(inputs, kernel, hex);
    std::vector<std::future<void>> others;
    try {
        while (others.size() + 1 < n_threads) {
            others.push_back(std::async(std::launch::async, [&work] { work.run({}); }));
        }
    } catch (const std::system_error &) { // There are no more threads: those that there are do it.
    }
    work.run(is_aborted);
    for (std::future<void> & other : others) {
        while (other.wait_for(ASK_PERIOD) != std::future_status::ready) {
            if (is_aborted && is_aborted()) {
                work.end();
            }
        }
        other.get();
    }
    return !work.was_ended();
}

} // namespace dqrelo
