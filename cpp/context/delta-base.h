// delta-base.h: whether a model is the base that a delta was made for.
#pragma once

#include "context/delta.h"
#include "file/fingerprint.h"

#include <string>

namespace dqrelo {

// Compares the delta's declared base with the model's file, and notes whether that is the very file. Returns false with one line in `err`
// if it is another model, or another quantisation and those are not allowed.
bool check_base(dqrelo_delta & delta, const base_file & base, bool allow_other_bytes, std::string & err);

// The loaded model must have what the base's file has: a loader may have been told to override or to skip tensors. Returns false with one
// line in `err`.
bool check_loaded_shapes(const llama_model & model, const delta_file & file, std::string & err);

} // namespace dqrelo
