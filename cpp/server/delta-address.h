// delta-address.h: addresses of files elsewhere, as requests name them, and what the process that fetches them answers.
#pragma once

#include <cstddef>
#include <string>

// Returns whether text names a place on a network: "hf://...", "https://...".
bool server_delta_is_address(const std::string & text);

// Throws server_delta_error unless the text can be an address: one line of some length. What it names decides who fetches it.
void server_delta_check_address(const std::string & address);

// Returns what messages may show of an address, whose rest can hold a signature or a password: "https://...".
std::string server_delta_shown_address(const std::string & address);

// A file that was fetched.
struct server_delta_fetched {
    std::string path;    // Lies in the cache of dqrelo_gguf.address.
    std::string address; // Names the version, and holds no credentials.
};

// Bytes of an answer at most, those of its end included.
inline constexpr size_t SERVER_DELTA_ANSWER_MAX = 16384;

// Reads an answer, as python/dqrelo_gguf/address/wire.py writes it; it is believed no more than other input. Throws server_delta_error:
// the answer's own, or a 502 where it is not as it should be.
server_delta_fetched server_delta_read_answer(const std::string & answer);
