#include "file/entries.h"

#include "file/message.h"

#include "cpu/bits.h"
#include "cpu/stack.h"

#include <algorithm>
#include <cinttypes>
#include <numeric>
#include <vector>

namespace dqrelo {

namespace {

// Returns how many entries the places of row i have, through all matrices.
int64_t row_count(const dqrelo_entry & e, int64_t i) {
    if (e.mask) {
        return count_bits(e.mask + i * (e.n_in / 8), e.n_in);
    }
    const uint8_t * counts = e.count + i * dqrelo_sparse_blocks(e.n_in);
    return std::accumulate(counts, counts + dqrelo_sparse_blocks(e.n_in), (int64_t) 0);
}

// Inside a block, columns ascend and are those of the row. As many as are counted are there.
std::string columns_problem(const dqrelo_entry & e) {
    const int64_t n_blocks = dqrelo_sparse_blocks(e.n_in);
    int64_t       at       = 0;
    for (int64_t b = 0; b < e.n_mat * e.n_out * n_blocks; b++) {
        const int width = (int) std::min<int64_t>(DQRELO_SPARSE_BLOCK, e.n_in - b % n_blocks * DQRELO_SPARSE_BLOCK);
        int       last  = -1;
        for (int k = 0; k < e.count[b]; k++, at++) {
            const int column = e.column[at];
            if (column <= last) {
                return message(".dq_column' has column %d in entry %" PRId64 ", expected more than %d", column, at, last);
            }
            if (column >= width) {
                return message(".dq_column' has column %d in entry %" PRId64 ", expected less than %d", column, at, width);
            }
            last = column;
        }
    }
    return "";
}

} // namespace

std::string entries_problem(const dqrelo_entry & e, int64_t n_entries) {
    const int64_t        n_rows = e.n_mat * e.n_out;
    std::vector<int64_t> counts((size_t) n_rows);
    for (int64_t i = 0; i < n_rows; i++) {
        counts[(size_t) i] = row_count(e, i);
    }
    const int64_t sum = std::accumulate(counts.begin(), counts.end(), (int64_t) 0);
    if (sum != n_entries) {
        return message("%s' has the places of %" PRId64 " entries, expected %" PRId64, e.mask ? ".dq_mask" : ".dq_count", sum, n_entries);
    }
    std::string problem = e.mask ? "" : columns_problem(e);
    int64_t     first   = 0;
    for (int64_t i = 0; i < n_rows && problem.empty(); i++) {
        if (e.start[i] != first) {
            problem = message(".dq_start' has %" PRId32 " for row %" PRId64 ", expected %" PRId64, e.start[i], i, first);
        }
        first += counts[(size_t) i];
    }
    return problem;
}

} // namespace dqrelo
