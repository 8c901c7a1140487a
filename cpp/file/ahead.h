// ahead.h: what a thread of its own does some way ahead of the one that reads a file.
#pragma once

#include "file/pacer.h"

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>

namespace dqrelo {

class ahead_of_reader {
public:
    // Does something for n_bytes of the file from offset_bytes on. Returns false where that is not to be had: it is not asked again.
    using work_fn = std::function<bool(size_t offset_bytes, size_t n_bytes)>;

    // Starts a thread that calls `work` for the bytes from `begin` to before `end`, a piece at a time and in this sequence, and not too far
    // ahead of what is read. It is paced (pacer.h). Where there is no further thread, nothing is done: it must not be needed, only help.
    ahead_of_reader(size_t begin, size_t end, work_fn work, const is_decoding_fn & is_decoding);

    // Ends it. What `work` uses must not go before.
    ~ahead_of_reader();
    ahead_of_reader(const ahead_of_reader &)             = delete;
    ahead_of_reader & operator=(const ahead_of_reader &) = delete;

    // The first n_bytes of the file are read.
    void read(size_t n_bytes);

private:
    void run(const is_decoding_fn & is_decoding);
    bool wait_for(size_t n_done);

    const size_t  begin_, end_;
    const work_fn work_;
    std::thread   thread_;

    std::mutex              mutex_; // Guards what follows.
    std::condition_variable changed_;
    size_t                  n_read_   = 0;
    bool                    is_ended_ = false;
};

} // namespace dqrelo
