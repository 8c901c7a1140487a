// delta-name-rules.h: what a delta may be called, whoever names it: the command line, a file in --deltas-dir, or a request.
#pragma once

#include <string>

// Returns what is wrong with a name, as a part of an error line; empty for one that reads well in a log, a URL, a list and a metric.
std::string server_delta_name_fault(const std::string & name);
