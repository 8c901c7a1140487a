// delta-keys.h: is this GGUF a delta file of our version, with every metadata key in its type? docs/format.md, section 3 and section 4
// (item 2).
#pragma once

#include "file/gguf-header.h"

#include <string>

namespace dqrelo {

// The keys of token ids that every file may have, each a UINT32.
constexpr const char * TOKEN_ID_KEYS[] = { "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id", "tokenizer.ggml.padding_token_id" };

// All tokens that end an answer, where a file names all of them.
constexpr const char * KEY_END_TOKENS = "dqrelo.end_token_ids";

// The numbers of entries, where a weight is sparse.
constexpr const char * KEY_N_ENTRIES = "dqrelo.weight.n_entries";

// Returns false with one line in `err` (without the file's name).
bool check_delta_keys(const gguf_header & header, std::string & err);

} // namespace dqrelo
