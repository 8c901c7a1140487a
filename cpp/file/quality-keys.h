// quality-keys.h: what a delta keeps of its fine-tune, as dqrelo-eval measured it and wrote it into the file: docs/format.md, section 8.
#pragma once

#include "file/gguf-header.h"

#include <cstddef>
#include <string>

namespace dqrelo {

// A key of the quality record. A text has at most QUALITY_TEXT_BYTES_MAX bytes, a digest is 64 lower-case hex digits, a number lies in
// [least, most].
struct quality_rule {
    const char * key;
    enum kind_t { TEXT, DIGEST, COUNT, NUMBER } kind;
    enum part_t { MEASURE, ON_TEXT, ON_PROBLEMS } part; // All keys of a part are there, or none; MEASURE exactly where another part is.
    double least;
    double most;
};

constexpr size_t QUALITY_TEXT_BYTES_MAX = 255;

// Returns rule i, or nullptr behind the last one.
const quality_rule * quality_rule_at(size_t i);

// The type of a rule's value.
gguf_type quality_type(const quality_rule & rule);

// Checks the record of a file whose keys have their types, if it has one. Returns false with one line in `err`.
bool check_quality(const gguf_header & header, std::string & err);

} // namespace dqrelo
