// log.h: llama.cpp's log, silent unless asked for; its first error becomes the text of an exception.
#pragma once

#include <string>

// Takes llama.cpp's log over, once a process. With `verbose` everything is printed to stderr from now on, until a call without.
void log_install(bool verbose);

// Forgets what this thread has logged so far.
void log_clear();

// Returns the first error line that this thread has logged since log_clear(), or `fallback`.
std::string log_first_error(const std::string & fallback);
