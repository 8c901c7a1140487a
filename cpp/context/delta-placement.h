// delta-placement.h: where the weights of a delta lie, and how many bytes each memory holds.
#pragma once

#include "context/delta.h"

#include <string>
#include <unordered_map>
#include <vector>

struct ggml_tensor;

namespace dqrelo {

// A tied matrix may be in memory twice, so a name can have several tensors.
using tensors_by_name = std::unordered_map<std::string, std::vector<const ggml_tensor *>>;

tensors_by_name tensors_of(const llama_model & model);

// Returns whether the operator reads all deltas of the model in the CPU's memory.
bool lies_on_cpu(const llama_model & model);

// Fills in `delta.copies`: where each weight is needed. Returns false with one line in `err`.
bool find_copies(dqrelo_delta & delta, const llama_model & model, std::string & err);

// Fills in `delta.memory` for a delta that was placed.
void count_memory(dqrelo_delta & delta);

// Copies to devices what is needed there, and lets go of the file's pages that nothing else reads. Returns false with one line in `err`.
bool load_packs(dqrelo_delta & delta, std::string & err);

// Puts the signs that the CPU multiplies into the sequence in which its kernels take them; after load_packs, which reads them as they were.
void arrange_signs(dqrelo_delta & delta, const is_decoding_fn & is_decoding);

} // namespace dqrelo
