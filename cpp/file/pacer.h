// pacer.h: lets a long piece of work go on beside threads that decode.
//
// Threads that decode wait for each other after every matrix. One that has lost its core for a while holds all of them up, and two cores
// that are taken at different times cost twice as much as two that are taken at once. So threads that are paced work at the same moments,
// for a short time each:
//
//   core 0 | work | decode                  | work | decode                  |
//   core 1 | work | decode                  | work | decode                  |
//          0      1                         5      6                        10  milliseconds
#pragma once

#include <cstdint>
#include <functional>

namespace dqrelo {

// Asked before each piece of work, on any thread: whether others decode. Empty: they do not.
using is_decoding_fn = std::function<bool()>;

// Of one thread, on which every call is made.
class pacer {
public:
    // On other systems than Linux it does nothing.
    explicit pacer(const is_decoding_fn & is_decoding);

    // To be called before each piece of work, which should take a fraction of a millisecond. Sleeps where this thread has worked long
    // enough, others decode, and want its core: where it was taken off that lately.
    void rest();

private:
    const is_decoding_fn is_decoding;
    int64_t              n_preempted      = 0; // how often this thread was taken off a core
    int64_t              paced_until_us   = 0;
    int64_t              work_begun_at_us = 0;
};

} // namespace dqrelo
