// arrange.h: puts the signs of a delta into the sequence in which this CPU's kernels take them (ggml_ops/cpu/transposed-signs.h).
#pragma once

#include "dqrelo-op.h"
#include "file/pacer.h"

#include <cstdint>
#include <vector>

namespace dqrelo {

// A part of the signs of a delta that is transposed at once: whole blocks of rows, and in a matrix's last piece what is left.
struct sign_piece {
    uint8_t * sign;
    int64_t   n_rows, row_bytes;

    const uint8_t * end() const { return sign + n_rows * row_bytes; }
};

// Transposes the signs of entries, whose memory is written to, while others are still on their way.
class sign_arranging {
public:
    // `tensors` are the beginnings of all tensors, in the sequence of memory.
    sign_arranging(const std::vector<dqrelo_entry> & entries, const std::vector<const void *> & tensors);

    // What lies in a tensor before the address `end` may be changed from now on. Calls for different tensors may be made at the same time.
    void may_change(size_t tensor, const void * end);

private:
    struct range {
        size_t next, end; // of `pieces`
    };

    std::vector<sign_piece> pieces; // in the sequence of memory
    std::vector<range>      left;   // of each tensor, those that are not transposed yet
};

// Transposes all signs of entries, on some threads, which are paced.
void arrange_signs(const std::vector<dqrelo_entry> & entries, const is_decoding_fn & is_decoding);

} // namespace dqrelo
