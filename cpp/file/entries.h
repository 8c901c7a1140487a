// entries.h: whether the places of a sparse weight's entries agree with each other: docs/format.md, section 4, item 6.
#pragma once

#include "dqrelo-op.h"

#include <string>

namespace dqrelo {

// Checks all matrices of an entry whose tensors have the right sizes for n_entries entries. Returns an empty text, or what is wrong: the
// suffix of the tensor and the rest of a line that begins with "tensor '" and the weight's name.
std::string entries_problem(const dqrelo_entry & entry, int64_t n_entries);

} // namespace dqrelo
