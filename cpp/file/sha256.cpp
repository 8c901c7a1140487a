// sha256.cpp: shares inputs out to threads, and on each to the lanes of a kernel.
#include "file/sha256.h"

extern "C" {
#include "hash/sha256/sha256.h"
}

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <future>
#include <mutex>
#include <system_error>
#include <thread>

namespace dqrelo {

namespace {

// Of all messages that are hashed side by side. Some tenths of a millisecond with SHA instructions, as a pacer wants it, and a moment on
// the slowest CPU: whoever waits wants a sign of life.
constexpr size_t N_PIECE_BLOCKS = ((size_t) 1 << 20) / SHA256_BLOCK_BYTES;

// What makes a further thread worth its start, and how many leave the memory's bandwidth to others.
constexpr size_t N_THREAD_BYTES = (size_t) 16 << 20;
constexpr size_t N_THREADS_MAX  = 4;

// Few messages take nearly as long as many together, so they wait until others have bytes, too, until one has this many of its own.
constexpr size_t N_AHEAD_BLOCKS = ((size_t) 4 << 20) / SHA256_BLOCK_BYTES;

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

// An input on its way.
struct message {
    size_t          input; // its number
    sha256_t        hash;
    const uint8_t * data; // what is left
    size_t          n_bytes;

    // Returns the number of whole blocks that lie before the address `end`.
    size_t n_blocks(uintptr_t end) const {
        return end > (uintptr_t) data ? std::min(n_bytes, (size_t) (end - (uintptr_t) data)) / SHA256_BLOCK_BYTES : 0;
    }
    // Returns whether what is left is no whole block, and lies before the address `end`.
    bool is_last(uintptr_t end) const { return n_bytes < SHA256_BLOCK_BYTES && (uintptr_t) data + n_bytes <= end; }
};

} // namespace

struct sha256_hashing::impl {
    const std::vector<sha256_input> inputs;
    const sha256_kernel &           kernel;
    const is_decoding_fn            is_decoding;
    std::vector<std::string>        hex;
    std::vector<std::future<void>>  threads;

    std::mutex              mutex; // Guards what follows.
    std::condition_variable changed;
    size_t                  n_begun  = 0;
    uintptr_t               end      = 0; // What lies before this address has arrived.
    bool                    is_ended = false;

    impl(std::vector<sha256_input> inputs, const sha256_kernel & kernel, const is_decoding_fn & is_decoding) :
        inputs(std::move(inputs)), kernel(kernel), is_decoding(is_decoding), hex(this->inputs.size()) {}

    void run(const is_aborted_fn & is_aborted);
    void stop();
    void set_end(uintptr_t to);
    bool wait_for_bytes(uintptr_t & seen, bool is_stuck);
    bool begin(message & next);
    bool update(message * messages, size_t n, uintptr_t until) const;
    bool finish(message & message, uintptr_t until);
};

void sha256_hashing::impl::stop() {
    const std::lock_guard<std::mutex> lock(mutex);
    is_ended = true;
    changed.notify_all();
}

// Brings `seen` up to what has arrived; where nothing could be done with what was seen before, waits for more. Returns false at the end.
bool sha256_hashing::impl::wait_for_bytes(uintptr_t & seen, bool is_stuck) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return is_ended || !is_stuck || end != seen; });
    seen = end;
    return !is_ended;
}

bool sha256_hashing::impl::begin(message & next) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (n_begun == inputs.size()) {
        return false;
    }
    const sha256_input & input = inputs[n_begun];
    next                       = { n_begun++, {}, (const uint8_t *) input.data, input.n_bytes };
    sha256_init(&next.hash);
    return true;
}

// Takes as many whole blocks as all of those have that have any. Returns whether there were some, and none of them should wait for others.
bool sha256_hashing::impl::update(message * messages, size_t n, uintptr_t until) const {
    size_t      n_blocks = N_PIECE_BLOCKS / kernel.n_lanes_max;
    size_t      n_most   = 0;
    size_t      n_lanes  = 0;
    message *   taken[SHA256_LANES_MAX];
    sha256_lane lanes[SHA256_LANES_MAX];
    for (size_t i = 0; i < n; ++i) {
        const size_t n_here = messages[i].n_blocks(until);
        if (n_here > 0) {
            n_blocks         = std::min(n_blocks, n_here);
            n_most           = std::max(n_most, n_here);
            taken[n_lanes]   = &messages[i];
            lanes[n_lanes++] = { messages[i].hash.state, messages[i].data };
        }
    }
    const bool has_all = until == UINTPTR_MAX;
    if (n_lanes == 0 || (n_lanes < n && !has_all && n_most < N_AHEAD_BLOCKS)) {
        return false;
    }
    kernel.update(lanes, n_lanes, n_blocks);
    for (size_t l = 0; l < n_lanes; ++l) {
        taken[l]->hash.count += n_blocks * SHA256_BLOCK_BYTES;
        taken[l]->data += n_blocks * SHA256_BLOCK_BYTES;
        taken[l]->n_bytes -= n_blocks * SHA256_BLOCK_BYTES;
    }
    return true;
}

// Returns whether no whole block was left, and the rest is there, so that the digest is made.
bool sha256_hashing::impl::finish(message & message, uintptr_t until) {
    if (!message.is_last(until)) {
        return false;
    }
    sha256_update(&message.hash, message.data, message.n_bytes);
    hex[message.input] = hex_of(message.hash);
    return true;
}

// Hashes until nothing is left to begin, or it was ended.
void sha256_hashing::impl::run(const is_aborted_fn & is_aborted) {
    pacer     pace(is_decoding);
    message   messages[SHA256_LANES_MAX];
    size_t    n        = 0;
    uintptr_t until    = 0;
    bool      is_stuck = false;
    for (;;) {
        if (is_aborted && is_aborted()) {
            stop();
        }
        while (n < kernel.n_lanes_max && begin(messages[n])) {
            ++n;
        }
        if (n == 0 || !wait_for_bytes(until, is_stuck)) {
            return;
        }
        pace.rest();
        const bool   moved    = update(messages, n, until);
        const size_t n_before = n;
        n        = (size_t) (std::remove_if(messages, messages + n, [&](message & message) { return finish(message, until); }) - messages);
        is_stuck = !moved && n == n_before;
    }
}

sha256_hashing::sha256_hashing(std::vector<sha256_input> inputs, const sha256_kernel & kernel, size_t n_threads,
                               const is_decoding_fn & is_decoding) :
    p(new impl(std::move(inputs), kernel, is_decoding)) {
    try {
        while (p->threads.size() + 1 < n_threads) {
            p->threads.push_back(std::async(std::launch::async, [p = p.get()] { p->run({}); }));
        }
    } catch (const std::system_error &) { // There are no more threads: those that there are do it.
    }
}

sha256_hashing::~sha256_hashing() {
    p->stop();
    p->threads.clear(); // Waits for each.
}

void sha256_hashing::impl::set_end(uintptr_t to) {
    const std::lock_guard<std::mutex> lock(mutex);
    end = to;
    changed.notify_all();
}

void sha256_hashing::arrived(const void * end) {
    p->set_end((uintptr_t) end);
}

bool sha256_hashing::finish(const is_aborted_fn & is_aborted, std::vector<std::string> & hex) {
    p->set_end(UINTPTR_MAX);
    p->run(is_aborted);
    for (std::future<void> & thread : p->threads) {
        while (thread.wait_for(ASK_PERIOD) != std::future_status::ready) {
            if (is_aborted && is_aborted()) {
                p->stop();
            }
        }
        thread.get();
    }
    p->threads.clear();
    hex = std::move(p->hex);
    return !p->is_ended;
}

size_t sha256_n_threads(const std::vector<sha256_input> & inputs) {
    size_t n_bytes = 0;
    for (const sha256_input & input : inputs) {
        n_bytes += input.n_bytes;
    }
    const size_t n_cores = std::max(2u, std::thread::hardware_concurrency()); // One core, too, has time while it waits for the disk.
    return std::min({ n_cores, N_THREADS_MAX, 1 + n_bytes / N_THREAD_BYTES });
}

} // namespace dqrelo
