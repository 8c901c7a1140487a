// share.h: how the work of an op is shared out among threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dqrelo_cpu {

// A thread's share of the work. The work of all groups lies in a line, of which each thread takes an equal part; a group is made of pieces
// of equal cost. Groups may have one row or hundreds, one piece or hundreds: all threads are busy either way.
struct share {
    int64_t begin, end;
    int64_t at = 0;

    share(int64_t total, int ith, int nth) : begin(total * ith / nth), end(total * (ith + 1) / nth) {}

    // Sets which of the next group's pieces are this thread's: *p0 to *p1 - 1, maybe none.
    void take(int64_t n_pieces, int64_t cost, int64_t * p0, int64_t * p1) {
        *p0 = std::clamp<int64_t>((begin - at + cost - 1) / cost, 0, n_pieces);
        *p1 = std::clamp<int64_t>((end - at + cost - 1) / cost, 0, n_pieces);
        at += n_pieces * cost;
    }
};

// A piece is LINE rows of a matrix, which make a cache line of the result.
static constexpr int64_t LINE = 16;

static inline int64_t count_lines(int64_t n) {
    return (n + LINE - 1) / LINE;
}

} // namespace dqrelo_cpu
