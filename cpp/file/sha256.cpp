// sha256.cpp: shares inputs out to threads, and on each to the lanes of a kernel.
#include "file/sha256.h"

extern "C" {
#include "hash/sha256/sha256.h"
}

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
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
    // Returns whether there is something to do with what lies before the address `end`.
    bool has_work(uintptr_t end) const { return n_blocks(end) > 0 || is_last(end); }
};

// Takes as many whole blocks as all of those have that have any.
void update(const sha256_kernel & kernel, std::vector<message> & messages, uintptr_t until) {
    size_t      n_blocks = N_PIECE_BLOCKS / kernel.n_lanes_max;
    size_t      n_lanes  = 0;
    message *   taken[SHA256_LANES_MAX];
    sha256_lane lanes[SHA256_LANES_MAX];
    for (message & message : messages) {
        const size_t n_here = message.n_blocks(until);
        if (n_here > 0) {
            n_blocks         = std::min(n_blocks, n_here);
            taken[n_lanes]   = &message;
            lanes[n_lanes++] = { message.hash.state, message.data };
        }
    }
    if (n_lanes == 0) {
        return;
    }
    kernel.update(lanes, n_lanes, n_blocks);
    for (size_t l = 0; l < n_lanes; ++l) {
        taken[l]->hash.count += n_blocks * SHA256_BLOCK_BYTES;
        taken[l]->data += n_blocks * SHA256_BLOCK_BYTES;
        taken[l]->n_bytes -= n_blocks * SHA256_BLOCK_BYTES;
    }
}

} // namespace

struct sha256_hashing::impl {
    const sha256_kernel &          kernel;
    const size_t                   n_threads;
    const is_decoding_fn           is_decoding;
    const is_hashed_fn             is_hashed;
    std::vector<std::string>       hex;
    std::vector<std::future<void>> threads;

    std::mutex              mutex; // Guards what follows.
    std::condition_variable changed;
    std::deque<message>     waiting;             // those that no thread has at the moment, the first ones first
    size_t                  n_waiting_bytes = 0; // what is left of them
    size_t                  n_held          = 0; // number of those that threads have
    uintptr_t               end             = 0; // What lies before this address has arrived.
    bool                    is_ended        = false;

    impl(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, size_t n_threads, const is_decoding_fn & is_decoding,
         const is_hashed_fn & is_hashed) :
        kernel(kernel), n_threads(n_threads), is_decoding(is_decoding), is_hashed(is_hashed), hex(inputs.size()) {
        for (size_t i = 0; i < inputs.size(); ++i) {
            waiting.push_back({ i, {}, (const uint8_t *) inputs[i].data, inputs[i].n_bytes });
            sha256_init(&waiting.back().hash);
            n_waiting_bytes += inputs[i].n_bytes;
        }
    }

    void   run(const is_aborted_fn & is_aborted);
    void   hash(const is_aborted_fn & is_aborted);
    void   stop();
    void   set_end(uintptr_t to);
    bool   is_first_long() const;
    size_t count_to_take() const;
    bool   take(std::vector<message> & messages, uintptr_t & until);
    void   give_back(std::vector<message> & messages);
};

void sha256_hashing::impl::stop() {
    const std::lock_guard<std::mutex> lock(mutex);
    is_ended = true;
    changed.notify_all();
}

// Returns whether the first message would not be finished with all others, because a lane is slower than the kernel with one message: it
// is a large part of what is left, and much longer than most.
bool sha256_hashing::impl::is_first_long() const {
    const size_t n_first = waiting.front().n_bytes;
    return n_first > n_waiting_bytes / kernel.n_lanes_max && n_first / 4 * (waiting.size() - 1) > n_waiting_bytes - n_first;
}

// Returns how many of the first messages a thread should take: none while it is better to wait for more bytes. What is shorter than a block
// takes no lane: a delta has four bytes of scale behind every matrix of signs.
size_t sha256_hashing::impl::count_to_take() const {
    size_t n       = 0;
    size_t n_lanes = 0;
    size_t n_most  = 0;
    for (; n < waiting.size() && n_lanes < kernel.n_lanes_max * n_threads && waiting[n].has_work(end); ++n) {
        const size_t n_blocks = waiting[n].n_blocks(end);
        n_lanes += n_blocks > 0 ? 1 : 0;
        n_most = std::max(n_most, n_blocks);
    }
    if (n > 0 && is_first_long()) {
        return 1;
    }
    size_t n_free = n_lanes >= kernel.n_lanes_max ? kernel.n_lanes_max : n_most >= N_AHEAD_BLOCKS ? n_lanes : 0;
    if (end == UINTPTR_MAX) { // The last ones are shared out.
        n_free = std::min(kernel.n_lanes_max, (n_lanes + n_held + n_threads - 1) / n_threads);
    }
    for (size_t i = 0; i < n; ++i) {
        if (waiting[i].n_blocks(end) > 0 && n_free-- == 0) {
            return i;
        }
    }
    return n;
}

// Moves messages here that are to be hashed up to the address `until`. There may be none after a while. Returns false at the end.
bool sha256_hashing::impl::take(std::vector<message> & messages, uintptr_t & until) {
    std::unique_lock<std::mutex> lock(mutex);
    if (is_ended || (waiting.empty() && n_held == 0)) {
        return false;
    }
    const size_t n = count_to_take();
    if (n == 0) {
        changed.wait(lock);
    }
    messages.assign(waiting.begin(), waiting.begin() + (ptrdiff_t) n);
    waiting.erase(waiting.begin(), waiting.begin() + (ptrdiff_t) n);
    for (const message & message : messages) {
        n_waiting_bytes -= message.n_bytes;
    }
    n_held += n;
    until = end;
    return true;
}

// Takes back those that are not finished, to their places.
void sha256_hashing::impl::give_back(std::vector<message> & messages) {
    const std::lock_guard<std::mutex> lock(mutex);
    n_held -= messages.size();
    for (const message & message : messages) {
        if (hex[message.input].empty()) {
            const auto is_before = [&](const struct message & other) { return other.input < message.input; };
            waiting.insert(std::find_if_not(waiting.begin(), waiting.end(), is_before), message);
            n_waiting_bytes += message.n_bytes;
        }
    }
    if (end == UINTPTR_MAX) { // Else this thread takes them again, and others wait for bytes.
        changed.notify_all();
    }
}

// Hashes until nothing is left, or it was ended.
void sha256_hashing::impl::hash(const is_aborted_fn & is_aborted) {
    pacer                pace(is_decoding);
    std::vector<message> messages;
    uintptr_t            until = 0;
    for (;;) {
        if (is_aborted && is_aborted()) {
            stop();
        }
        if (!take(messages, until)) {
            return;
        }
        pace.rest();
        update(kernel, messages, until);
        for (message & message : messages) {
            if (message.is_last(until)) {
                sha256_update(&message.hash, message.data, message.n_bytes);
                hex[message.input] = hex_of(message.hash);
                message.data += message.n_bytes;
                message.n_bytes = 0;
            }
            if (is_hashed) {
                is_hashed(message.input, message.data);
            }
        }
        give_back(messages);
    }
}

// What is_hashed throws ends all threads: nobody has this one's messages any more.
void sha256_hashing::impl::run(const is_aborted_fn & is_aborted) {
    try {
        hash(is_aborted);
    } catch (...) {
        stop();
        throw;
    }
}

sha256_hashing::sha256_hashing(const std::vector<sha256_input> & inputs, const sha256_kernel & kernel, size_t n_threads,
                               const is_decoding_fn & is_decoding, const is_hashed_fn & is_hashed) :
    p(new impl(inputs, kernel, n_threads, is_decoding, is_hashed)) {
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
    const size_t n_cores = std::max(1u, std::thread::hardware_concurrency());
    return std::min({ n_cores + 1, N_THREADS_MAX, 1 + n_bytes / N_THREAD_BYTES });
}

} // namespace dqrelo
