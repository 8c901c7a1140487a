// Session files (llama_state_save_file) hold what a context's sequences computed, and begin with the deltas that were bound to them.
#include "context/context-state.h"
#include "context/delta.h"
#include "dqrelo-hooks.h"

#include "llama-impl.h"
#include "llama-mmap.h"

#include <cstdio>

namespace {

constexpr uint32_t SESSION_MAGIC  = 0x71647373; // Stands before llama.cpp's own, so a stock build refuses the file.
constexpr uint32_t N_OWNERS_BYTES = 1 << 20;    // bytes; more than 256 sequences of 8 deltas need

// Returns a line for each delta of each sequence: the sequence's id, the delta's content hash, the scale. Empty: all run the base.
std::string owners_of(const dqrelo_context * dctx) {
    std::string owners;
    for (size_t seq = 0; dctx && seq < dctx->seqs.size(); seq++) {
        for (const dqrelo_context::part & p : dctx->seqs[seq]) {
            if (p.request_scale != 0.0f) {
                const std::string & hash = dctx->active[p.delta_index].delta->file->content_hash();
                owners += std::to_string(seq) + " " + hash + format(" %.9g\n", p.request_scale); // 9 digits tell any two floats apart.
            }
        }
    }
    return owners;
}

} // namespace

void dqrelo_write_owners(const dqrelo_context * dctx, llama_file & file) {
    const std::string owners = owners_of(dctx);
    if (!owners.empty()) {
        file.write_u32(SESSION_MAGIC);
        file.write_u32((uint32_t) owners.size());
        file.write_raw(owners.data(), owners.size());
    }
}

bool dqrelo_check_owners(const dqrelo_context * dctx, llama_file & file) {
    std::string owners;
    if (file.size() >= 2 * sizeof(uint32_t) && file.read_u32() == SESSION_MAGIC) {
        const uint32_t n = file.read_u32();
        owners.resize(n <= N_OWNERS_BYTES && n <= file.size() - file.tell() ? n : 0);
        file.read_raw(&owners[0], owners.size());
    } else {
        file.seek(0, SEEK_SET);
    }
    const std::string expected = owners_of(dctx);
    if (owners != expected) {
        LLAMA_LOG_ERROR("dqrelo: the session file was computed by %s, not by %s. Remove it, or run what computed it\n",
                        owners.empty() ? "the base" : "other deltas", expected.empty() ? "the base" : "the deltas of this context");
    }
    return owners == expected;
}
