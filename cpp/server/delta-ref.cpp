// What a request does with the delta that it asked for: the hold, the task's parameters, the sequence of its slot.
#include "delta-ref.h"

#include "build-info.h"
#include "delta-set.h"
#include "hash/hash.h"

#include <algorithm>

server_delta * server_delta_ref::delta() const {
    return use ? use->holds[lead]->delta.get() : nullptr;
}

std::string server_delta_ref::key() const {
    std::vector<std::string> owners;
    for (size_t i = 0; use && i < use->holds.size(); i++) {
        if (scales[i] != 0.0f) {
            owners.push_back(use->holds[i]->delta->hash + string_format("@%.9g", scales[i])); // 9 digits tell any two floats apart.
        }
    }
    std::sort(owners.begin(), owners.end());
    return string_join(owners, "+");
}

std::string server_delta_mark::build_info() const {
    return llama_build_info() + text;
}

// A whole delta is known by its own content hash; scales and blends by a hash of their key.
static server_delta_mark mark_of(const server_delta_ref & ref) {
    static const size_t      N_DIGITS = 16;
    static const std::string WHOLE    = "@1";

    const std::string key = ref.key();
    if (key.empty()) {
        return {};
    }
    const bool is_whole = key.find('+') == std::string::npos && string_ends_with(key, WHOLE);
    return { "-dq-" + (is_whole ? key : hash_sha256_hex(key.data(), key.size())).substr(0, N_DIGITS) };
}

void server_delta_ref::done(uint64_t n_prompt, uint64_t n_generated) const {
    if (use) {
        for (const auto & hold : use->holds) {
            hold->count(n_prompt, n_generated);
        }
        use.reset();
    }
}

// A prompt that mtmd made, which is each of a server with --mmproj, has the base's tokens at its ends: gives it those of the delta.
static void give_ends(const server_delta_vocab & vocab, server_task & task) {
    const server_tokens & made  = task.tokens;
    const size_t          begin = llama_vocab_get_add_bos(vocab.base) ? 1 : 0;
    const size_t          end   = made.size() - (llama_vocab_get_add_eos(vocab.base) ? 1 : 0);
    server_tokens         own(llama_tokens(), true);
    if (vocab.add_bos && vocab.bos != LLAMA_TOKEN_NULL) {
        own.push_back(vocab.bos);
    }
    for (auto & span : task.params.message_spans.spans) {
        span.pos = std::max(span.pos, begin) - begin + own.size();
    }
    for (size_t i = begin; i < end;) {
        if (made[i] != LLAMA_TOKEN_NULL) {
            own.push_back(made[i++]);
            continue;
        }
        const auto * chunk = made.find_chunk(i).get();
        own.push_back(chunk);
        i += mtmd_input_chunk_get_n_tokens(chunk);
    }
    if (vocab.add_eos && vocab.eos != LLAMA_TOKEN_NULL) {
        own.push_back(vocab.eos);
    }
    task.tokens = std::move(own);
}

void server_delta_apply(const server_delta_ref & ref, const llama_vocab * vocab, server_task & task) {
    task.params.delta          = ref;
    task.params.delta.mark     = mark_of(ref);
    const server_delta * delta = ref.delta();
    if (delta != nullptr && task.tokens.has_mtmd && !delta->vocab.has_ends_of_base()) {
        give_ends(delta->vocab, task);
    }
    task.tokens.delta_key = ref.key();
    if (delta == nullptr) {
        return;
    }
    task.params.oaicompat_model = ref.name;
    task.params.sampling.eog    = delta->eog;
    if (task.params.sampling.ignore_eos && !delta->eog.empty()) {
        dqrelo_ban_eog(task.params.sampling.logit_bias, vocab, delta->eog);
    }
}

server_delta_vocab server_delta_vocab_of(const server_delta_ref & ref, const llama_vocab * base) {
    return ref.use ? ref.delta()->vocab : server_delta_vocab(base);
}

server_delta_params::server_delta_params(const server_delta_ref & ref, const common_params & base) : base(base) {
    if (ref.use) {
        own           = base;
        own->sampling = ref.delta()->sampling;
    }
}

std::string server_delta_bind(const server_delta_ref & ref, llama_context * ctx, int id_slot) {
    std::vector<dqrelo_part> parts;
    char                     err[1024] = "";
    for (size_t i = 0; ref.use && i < ref.use->holds.size(); i++) {
        const server_delta & delta = *ref.use->holds[i]->delta;
        if (ref.scales[i] == 0.0f) {
            continue;
        }
        if (delta.handle == nullptr) {
            return "delta '" + delta.name + "': the server went to sleep before the request ran. Send it again";
        }
        parts.push_back({ delta.handle, ref.scales[i] });
    }
    if (dqrelo_bind_parts(ctx, id_slot, parts.data(), parts.size(), err, sizeof(err))) {
        return "";
    }
    return string_format("delta '%s': %s", ref.name.c_str(), err);
}

bool server_delta_can_batch(const server_delta_ref & a, const server_delta_ref & b, const llama_context * ctx) {
    if (llama_get_memory(ctx) != nullptr || a.key() == b.key()) {
        return true; // With a memory, llama_decode splits the batch itself.
    }
    const auto needs_own = [ctx](const server_delta_ref & ref) {
        return ref.use && std::any_of(ref.use->holds.begin(), ref.use->holds.end(),
                                      [ctx](const auto & hold) { return dqrelo_needs_own_batch(ctx, hold->delta->handle); });
    };
    return !needs_own(a) && !needs_own(b);
}
