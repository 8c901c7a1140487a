// json-text.h: is a text a JSON object? Nothing is built of it.
#pragma once

#include <string>

namespace dqrelo {

// Whether `text`, which is UTF-8, is an object of RFC 8259 from its first byte on, nested at most `max_depth` deep, whose escapes are
// characters and whose numbers are finite as doubles.
bool is_json_object(const std::string & text, int max_depth);

} // namespace dqrelo
