// What a request does with the delta that it asked for: the hold, the task's parameters, the sequence of its slot.
#include "delta-ref.h"

#include "delta-set.h"

server_delta * server_delta_ref::delta() const {
    return use ? use->delta.get() : nullptr;
}

std::string server_delta_ref::key() const {
    if (!use || scale == 0.0f) {
        return "";
    }
    return delta()->hash + string_format("@%.9g", scale); // 9 digits tell any two floats apart.
}

void server_delta_ref::done(uint64_t n_prompt, uint64_t n_generated) const {
    if (use) {
        use->count(n_prompt, n_generated);
        use.reset();
    }
}

void server_delta_apply(const server_delta_ref & ref, const llama_vocab * vocab, server_task & task) {
    task.params.delta          = ref;
    task.tokens.delta_key      = ref.key();
    const server_delta * delta = ref.delta();
    if (delta == nullptr) {
        return;
    }
    task.params.oaicompat_model = delta->name;
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
    const bool     is_base   = ref.key().empty();
    server_delta * delta     = is_base ? nullptr : ref.delta();
    char           err[1024] = "";
    if (delta != nullptr && delta->handle == nullptr) {
        return "delta '" + delta->name + "': the server went to sleep before the request ran. Send it again";
    }
    if (dqrelo_bind(ctx, id_slot, is_base ? nullptr : delta->handle, is_base ? 1.0f : ref.scale, err, sizeof(err))) {
        return "";
    }
    return string_format("delta '%s': %s", is_base ? "" : delta->name.c_str(), err);
}

bool server_delta_can_batch(const server_delta_ref & a, const server_delta_ref & b, const llama_context * ctx) {
    if (a.key() == b.key() || llama_get_memory(ctx) != nullptr) {
        return true; // The function llama_decode splits the batch itself.
    }
    const auto needs_own = [ctx](const server_delta_ref & ref) {
        return ref.delta() != nullptr && dqrelo_needs_own_batch(ctx, ref.delta()->handle);
    };
    return !needs_own(a) && !needs_own(b);
}
