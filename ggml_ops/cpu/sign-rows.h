// sign-rows.h: rows of signs in the sequence of the file, one after the other, whether they are transposed or not.
#pragma once

#include "kernels.h"
#include "prefetch.h"
#include "transposed-signs.h"

namespace { // Methods of classes would be weak symbols outside of it.

// A piece of each row of a matrix of signs. Whole groups are restored, so rows are best taken in sequence.
class sign_rows {
public:
    static constexpr int64_t MAX_BYTES = DQRELO_I16_COLUMNS / 8 + 1; // of a piece: one more where its first bit is no byte's first

    // Bytes b0 to b0 + n - 1, at most MAX_BYTES, of rows of row_bytes.
    sign_rows(bool transposed, const uint8_t * sign, int64_t n_rows, int64_t row_bytes, int64_t b0, int64_t n) :
        sign(sign),
        n_rows(n_rows),
        n_transposed(transposed ? n_rows / DQRELO_GROUP_ROWS * DQRELO_GROUP_ROWS : 0),
        row_bytes(row_bytes),
        b0(b0),
        n_chunks((b0 % DQRELO_CHUNK_BYTES + n + DQRELO_CHUNK_BYTES - 1) / DQRELO_CHUNK_BYTES) {}

    // It lies there until another row is asked for.
    const uint8_t * row(int64_t i) {
        if (i >= n_transposed) {
            return sign + i * row_bytes + b0;
        }
        if (i / DQRELO_GROUP_ROWS != group) {
            group               = i / DQRELO_GROUP_ROWS;
            const int64_t first = group * DQRELO_GROUP_ROWS;
            dqrelo_restore_signs(sign, n_rows, row_bytes, first, b0 / DQRELO_CHUNK_BYTES, n_chunks, rows, STRIDE);
            ask_for(first + DQRELO_GROUP_ROWS);
        }
        return rows + i % DQRELO_GROUP_ROWS * STRIDE + b0 % DQRELO_CHUNK_BYTES;
    }

private:
    // Asks for the same piece of the group that begins with row i, if there is one.
    void ask_for(int64_t i) const {
        for (int64_t c = b0 / DQRELO_CHUNK_BYTES, end = c + n_chunks; i < n_transposed && c < end; c++) {
            prefetch_lines<DQRELO_CHUNK_BYTES * DQRELO_GROUP_ROWS>((uintptr_t) (sign + dqrelo_chunk_offset(i, n_rows, row_bytes, c)));
        }
    }

    static constexpr int64_t STRIDE = (MAX_BYTES + 2 * DQRELO_CHUNK_BYTES - 2) / DQRELO_CHUNK_BYTES * DQRELO_CHUNK_BYTES;

    const uint8_t * sign;
    int64_t         n_rows, n_transposed, row_bytes, b0, n_chunks;
    int64_t         group = -1; // the one that was restored last
    uint8_t         rows[DQRELO_GROUP_ROWS * STRIDE];
};

} // namespace
