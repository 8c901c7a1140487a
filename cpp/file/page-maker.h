// page-maker.h: makes the pages of fresh memory ahead of a file that is read into it.
//
// The system clears a page when it is first written to. A reader that waits for that leaves the disk idle meanwhile.
#pragma once

#include "file/pacer.h"

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

namespace dqrelo {

class page_maker {
public:
    // Starts a thread that makes pages from `data` on, which is page-aligned, in this order and some way ahead of what is written. Where
    // there is no further thread, or the system makes no pages when it is asked to, they are made as they are written to. It is
    // paced (pacer.h).
    page_maker(uint8_t * data, size_t n_bytes, const is_decoding_fn & is_decoding);

    // Ends it. The memory must not go before.
    ~page_maker();
    page_maker(const page_maker &)             = delete;
    page_maker & operator=(const page_maker &) = delete;

    // The first n_bytes are written.
    void written(size_t n_bytes);

private:
    void run(const is_decoding_fn & is_decoding);
    bool wait_for(size_t n_made);

    uint8_t * const data_;
    const size_t    n_bytes_;
    std::thread     thread_;

    std::mutex              mutex_; // Guards what follows.
    std::condition_variable changed_;
    size_t                  n_written_ = 0;
    bool                    is_ended_  = false;
};

} // namespace dqrelo
