// arrange.h: puts the signs of a delta into the sequence in which this CPU's kernels take them (ggml_ops/cpu/transposed-signs.h).
#pragma once

#include "dqrelo-op.h"
#include "file/pacer.h"

#include <vector>

namespace dqrelo {

// Transposes all signs of an entry, whose memory is written to.
void arrange_signs(const dqrelo_entry & entry, pacer & pace);

// The same of several on some threads, which are paced.
void arrange_signs(const std::vector<dqrelo_entry> & entries, const is_decoding_fn & is_decoding);

} // namespace dqrelo
