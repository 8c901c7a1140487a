#include "file/arrange.h"

#include "cpu/transposed-signs.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <system_error>
#include <thread>

namespace dqrelo {

// Little enough that hardly any of a piece has left the caches when the last of it was hashed.
static constexpr int64_t N_PIECE_BYTES = 128 << 10;

// What makes a further thread worth its start, and how many leave the memory's bandwidth to others.
static constexpr size_t N_THREAD_PIECES = 128;
static constexpr size_t N_THREADS_MAX   = 4;

// Cuts a matrix into pieces.
static void add_pieces(const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void * data) {
    auto &        pieces = *(std::vector<sign_piece> *) data;
    const int64_t n_step = std::max<int64_t>(N_PIECE_BYTES / (row_bytes * DQRELO_BLOCK_ROWS), 1) * DQRELO_BLOCK_ROWS;
    for (int64_t i = 0; i < n_rows; i += n_step) {
        pieces.push_back({ const_cast<uint8_t *>(sign) + i * row_bytes, std::min(n_step, n_rows - i), row_bytes });
    }
}

static std::vector<sign_piece> pieces_of(const std::vector<dqrelo_entry> & entries) {
    std::vector<sign_piece> pieces;
    for (const dqrelo_entry & entry : entries) {
        dqrelo_for_each_sign_matrix(&entry, add_pieces, &pieces);
    }
    return pieces;
}

static void transpose(const sign_piece & piece) {
    dqrelo_transpose_signs(piece.sign, piece.n_rows, piece.row_bytes);
}

sign_arranging::sign_arranging(const std::vector<dqrelo_entry> & entries, const std::vector<const void *> & tensors) :
    pieces(pieces_of(entries)) {
    std::sort(pieces.begin(), pieces.end(), [](const sign_piece & a, const sign_piece & b) { return a.sign < b.sign; });
    size_t i = 0;
    for (size_t t = 0; t < tensors.size(); ++t) {
        const size_t begin = i;
        while (i < pieces.size() && (t + 1 == tensors.size() || pieces[i].sign < tensors[t + 1])) {
            ++i;
        }
        left.push_back({ begin, i });
    }
}

void sign_arranging::may_change(size_t tensor, const void * end) {
    for (range & r = left[tensor]; r.next < r.end && pieces[r.next].end() <= end; ++r.next) {
        transpose(pieces[r.next]);
    }
}

void arrange_signs(const std::vector<dqrelo_entry> & entries, const is_decoding_fn & is_decoding) {
    const std::vector<sign_piece> pieces = pieces_of(entries);
    std::atomic<size_t>           next{ 0 };
    const auto                    work = [&] {
        pacer pace(is_decoding);
        for (size_t i = next++; i < pieces.size(); i = next++) {
            pace.rest();
            transpose(pieces[i]);
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
