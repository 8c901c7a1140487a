#include "file/arrange.h"

#include "cpu/transposed-signs.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <system_error>
#include <thread>

namespace dqrelo {

namespace {

// Rows that are transposed at once: a fraction of a millisecond, as a pacer wants it.
struct piece {
    uint8_t * sign;
    int64_t   n_rows, row_bytes;
};

constexpr int64_t N_PIECE_BYTES = 1 << 20;

// What makes a further thread worth its start, and how many leave the memory's bandwidth to others.
constexpr size_t N_THREAD_PIECES = 16;
constexpr size_t N_THREADS_MAX   = 4;

// Cuts a matrix into pieces of whole groups of rows.
void add_pieces(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void * data) {
    auto &        pieces = *(std::vector<piece> *) data;
    const int64_t n_step = std::max<int64_t>(N_PIECE_BYTES / (row_bytes * DQRELO_GROUP_ROWS), 1) * DQRELO_GROUP_ROWS;
    for (int64_t i = 0; i < n_rows; i += n_step) {
        pieces.push_back({ const_cast<uint8_t *>(sign) + i * row_bytes, std::min(n_step, n_rows - i), row_bytes });
    }
}

} // namespace

void arrange_signs(const dqrelo_entry & entry, pacer & pace) {
    std::vector<piece> pieces;
    dqrelo_for_each_sign_matrix(&entry, add_pieces, &pieces);
    for (const piece & p : pieces) {
        pace.rest();
        dqrelo_transpose_signs(p.sign, p.n_rows, p.row_bytes);
    }
}

void arrange_signs(const std::vector<dqrelo_entry> & entries, const is_decoding_fn & is_decoding) {
    std::vector<piece> pieces;
    for (const dqrelo_entry & entry : entries) {
        dqrelo_for_each_sign_matrix(&entry, add_pieces, &pieces);
    }
    std::atomic<size_t> next{ 0 };
    const auto          work = [&] {
        pacer pace(is_decoding);
        for (size_t i = next++; i < pieces.size(); i = next++) {
            pace.rest();
            dqrelo_transpose_signs(pieces[i].sign, pieces[i].n_rows, pieces[i].row_bytes);
        }
    };
    const size_t n_cores   = std::max(1u, std::thread::hardware_concurrency());
    const size_t n_threads = std::min({ n_cores, N_THREADS_MAX, 1 + pieces.size() / N_THREAD_PIECES });

    std::vector<std::future<void>> threads;
    try {
        while (threads.size() + 1 < n_threads) {
            threads.push_back(std::async(std::launch::async, work));
        }
    } catch (const std::system_error &) { // There are no more threads: those that there are do it.
    }
    work();
    for (std::future<void> & thread : threads) {
        thread.get();
    }
}

} // namespace dqrelo
