#include "file/page-maker.h"

#include <algorithm>
#include <system_error>

#ifndef _WIN32
#include <sys/mman.h>
#endif

namespace dqrelo {

// How much is made in one request, and how far ahead: what the system reads ahead from a quick disk.
static constexpr size_t PIECE   = (size_t) 1 << 20;
static constexpr size_t N_AHEAD = 24 * PIECE;

// Makes pages, as if each had been written to without a change. Returns false where that is not to be had: the pages are made later.
static bool make_pages(uint8_t * data, size_t n_bytes) {
#ifdef MADV_POPULATE_WRITE // Linux 5.14
    return madvise(data, n_bytes, MADV_POPULATE_WRITE) == 0;
#else
    (void) data;
    return n_bytes == 0;
#endif
}

page_maker::page_maker(uint8_t * data, size_t n_bytes, const is_decoding_fn & is_decoding) : data_(data), n_bytes_(n_bytes) {
    try {
        thread_ = std::thread([this, is_decoding] { run(is_decoding); });
    } catch (const std::system_error &) { // No thread is left.
    }
}

page_maker::~page_maker() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        is_ended_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
        thread_.join();
    }
}

void page_maker::written(size_t n_bytes) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        n_written_ = n_bytes;
    }
    changed_.notify_all();
}

// Waits until n_made bytes are not too far ahead. Returns false at the end.
bool page_maker::wait_for(size_t n_made) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return is_ended_ || n_made < n_written_ + N_AHEAD; });
    return !is_ended_;
}

void page_maker::run(const is_decoding_fn & is_decoding) {
    pacer pace(is_decoding);
    for (size_t n_made = 0; n_made < n_bytes_ && wait_for(n_made);) {
        pace.rest();
        const size_t n = std::min(PIECE, n_bytes_ - n_made);
        if (!make_pages(data_ + n_made, n)) {
            return;
        }
        n_made += n;
    }
}

} // namespace dqrelo
