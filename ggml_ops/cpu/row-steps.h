// row-steps.h: the loop over the rows of b that kernels multiply several of at once.
#pragma once

#include "kernels.h"

namespace { // What is instantiated with it would be weak symbols else.

template <int T>
struct row_count {
    static constexpr int value = T;
};

} // namespace

// Calls f(row_count<T>, t) for rows t to t + T - 1, for the next T, and so on, and for the rows left before `end` with a smaller T. It is
// never inlined: in one large function the compiler keeps fewer values in registers. f should hold copies, because what it refers to is
// read again for each step.
template <int T, class F>
static __attribute__((noinline)) void for_row_steps(int t, int end, F f) {
    for (; t + T <= end; t += T) {
        f(row_count<T>(), t);
    }
    if constexpr (T > 1) {
        if (t < end) {
            for_row_steps<T - 1>(t, end, f);
        }
    }
}
