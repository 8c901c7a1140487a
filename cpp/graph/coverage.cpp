#include "graph/coverage.h"

#include "context/context-state.h"
#include "context/delta.h"
#include "graph/composed-check.h"
#include "graph/weight-usage.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace dqrelo {

namespace {

// While it lives, graphs are built to be looked at: the mode must end even if one cannot be built.
class scan_mode {
public:
    scan_mode(dqrelo_context & dctx, graph_usage & usage) : dctx(dctx) { dctx.scan = &usage; }
    ~scan_mode() { dctx.scan = nullptr; }
    scan_mode(const scan_mode &)             = delete;
    scan_mode & operator=(const scan_mode &) = delete;

private:
    dqrelo_context & dctx;
};

// Builds the graphs of `ctx`, for one token and for several, so that the graph pass records what they read.
std::shared_ptr<const graph_usage> scan(llama_context & ctx, dqrelo_context & dctx) {
    const auto &    cparams = ctx.get_cparams();
    auto            usage   = std::make_shared<graph_usage>();
    const scan_mode mode(dctx, *usage);

    // As llama.cpp itself reserves its graphs. Some architectures build other graphs for single tokens.
    const uint32_t n_seqs = cparams.n_seq_max;
    for (uint32_t n_tokens : { n_seqs, std::min(cparams.n_ctx, cparams.n_ubatch) }) {
        llama_memory_context_ptr mctx;
        if (ctx.get_memory()) {
            mctx = ctx.get_memory()->init_full();
        }
        if (!ctx.graph_reserve(n_tokens, n_seqs, std::min(n_tokens, cparams.n_outputs_max), mctx.get(), /*split_only =*/true)) {
            throw std::runtime_error("the graphs of the context cannot be built");
        }
    }
    return usage;
}

// How the graphs read the weights of a delta.
struct delta_reads {
    std::vector<std::string> inert;      // No graph reads these weights.
    std::string              own_ubatch; // Names the first weight that needs a ubatch of one delta, and why, or is empty.
};

bool find_reads(const graph_usage & usage, const dqrelo_delta & delta, delta_reads & reads, std::string & err) {
    for (const auto & w : delta.file->weights()) {
        const weight_usage * used = usage.find(w.name);
        if (!used) {
            reads.inert.push_back(w.name);
        } else if (!used->problem.empty()) {
            err = delta.file->path() + ": tensor '" + w.name + "' " + used->problem +
                  ". Convert the fine-tune without it (--exclude), or merge the delta";
            return false;
        } else if (reads.own_ubatch.empty() && !used->own_ubatch.empty()) {
            reads.own_ubatch = "'" + w.name + "' " + used->own_ubatch;
        }
    }
    return true;
}

} // namespace

void scan_graphs(llama_context & ctx, dqrelo_context & dctx) {
    if (!dctx.usage) {
        dctx.usage = scan(ctx, dctx);
    }
}

bool check_coverage(llama_context & ctx, dqrelo_context & dctx, dqrelo_delta & delta, int32_t & n_applied, int32_t & n_inert,
                    std::string & err) {
    scan_graphs(ctx, dctx);
    delta_reads reads;
    if (!find_reads(*dctx.usage, delta, reads, err)) {
        return false;
    }
    n_inert   = (int32_t) reads.inert.size();
    n_applied = (int32_t) delta.file->weights().size() - n_inert;
    if (n_applied == 0) {
        err = delta.file->path() + ": the graphs of this context read none of the delta's " + std::to_string(n_inert) +
              " weights, so it would change nothing";
        return false;
    }
    uint32_t          n_composed = 0;
    const std::string lacks      = composed_problem(dctx, *dctx.usage, delta, n_composed);
    if (!lacks.empty()) {
        err = delta.file->path() + ": " + lacks + ". Convert the fine-tune without it (--exclude), or run with -ngl 0";
        return false;
    }
    if (!reads.own_ubatch.empty()) {
        LLAMA_LOG_INFO("dqrelo: %s: its tokens share no ubatch with those of others: tensor %s\n", delta.file->path().c_str(),
                       reads.own_ubatch.c_str());
    }
    dctx.set_verdict(delta, { !reads.own_ubatch.empty(), n_composed });
    const std::lock_guard<std::mutex> lock(delta.mutex);
    delta.inert = std::move(reads.inert);
    return true;
}

} // namespace dqrelo
