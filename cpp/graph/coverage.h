// coverage.h: whether the graphs of a context read what a delta changes in forms that can carry it.
#pragma once

#include <cstdint>
#include <string>

struct dqrelo_context;
struct dqrelo_delta;
struct llama_context;

namespace dqrelo {

// Finds out what the graphs of a context read, unless `dctx` knows it: they are built without being run. Throws std::exception if they
// cannot be built.
void scan_graphs(llama_context & ctx, dqrelo_context & dctx);

// Checks a delta of the context's model against its graphs, which are scanned the first time, and notes the verdict in `dctx` and the
// weights that no graph reads in the delta. Once they are scanned, any thread may do this. Returns false with one line in `err`. Throws
// std::exception if the graphs cannot be built.
bool check_coverage(llama_context & ctx, dqrelo_context & dctx, dqrelo_delta & delta, int32_t & n_applied, int32_t & n_inert,
                    std::string & err);

} // namespace dqrelo
