#include "file/ahead.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace dqrelo {

// How much is done in one call, and how far ahead: further than the system reads from a quick disk (8 MiB, and 16 where it is told that
// all will be read).
static constexpr size_t PIECE   = (size_t) 1 << 20;
static constexpr size_t N_AHEAD = 24 * PIECE;

ahead_of_reader::ahead_of_reader(size_t begin, size_t end, work_fn work, const is_decoding_fn & is_decoding) :
    begin_(begin), end_(end), work_(std::move(work)) {
    try {
        thread_ = std::thread([this, is_decoding] { run(is_decoding); });
    } catch (const std::system_error &) { // No thread is left.
    }
}

ahead_of_reader::~ahead_of_reader() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_ended_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
        thread_.join();
    }
}

void ahead_of_reader::read(size_t n_bytes) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        n_read_ = n_bytes;
    }
    changed_.notify_all();
}

// Waits until n_done bytes are not too far ahead. Returns false at the end.
bool ahead_of_reader::wait_for(size_t n_done) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return is_ended_ || n_done < n_read_ + N_AHEAD; });
    return !is_ended_;
}

void ahead_of_reader::run(const is_decoding_fn & is_decoding) {
    pacer pace(is_decoding);
    for (size_t at = begin_; at < end_ && wait_for(at);) {
        pace.rest();
        const size_t n = std::min(PIECE, end_ - at);
        if (!work_(at, n)) {
            return;
        }
        at += n;
    }
}

} // namespace dqrelo
