#include "loaded-deltas.h"

#include "common.h"
#include "log.h"
#include "sampling.h"
#include "template-chat.h"

#include <cinttypes>
#include <algorithm>

static const size_t N_ERR     = 1024; // bytes of an error line
static const int    N_EOG_MAX = 128;  // A list of end tokens has at most 64, a vocabulary some 25.

dqrelo_eog dqrelo_eog_of(const dqrelo_delta * delta, const llama_vocab * vocab) {
    dqrelo_eog eog(N_EOG_MAX);
    eog.resize(std::clamp(dqrelo_eog_tokens(delta, eog.data(), N_EOG_MAX), 0, N_EOG_MAX));
    std::sort(eog.begin(), eog.end());
    return eog == dqrelo_vocab_eog(vocab) ? dqrelo_eog() : eog;
}

// Makes "blk.0.x, blk.1.x, ..." of the names: a load line is no place for hundreds of them.
static std::string inert_names(const dqrelo_delta * delta, int32_t n_inert) {
    const int32_t n_shown = std::min(n_inert, 4);
    std::string   names;
    for (int32_t i = 0; i < n_shown; i++) {
        names += (i > 0 ? ", " : " (") + std::string(dqrelo_inert_weight(delta, i));
    }
    return n_inert == 0 ? "" : names + (n_shown < n_inert ? ", ...)" : ")");
}

void dqrelo_log_last_words(const std::string & name, const std::string & err) {
    LOG_ERR("delta '%s': %s\n", name.c_str(), err.c_str());
    common_log_flush(common_log_main());
}

bool dqrelo_use_mmap(const common_params & params) {
    return params.load_mode == LLAMA_LOAD_MODE_MMAP || params.load_mode == LLAMA_LOAD_MODE_MMAP_MLOCK;
}

// Returns the delta of a program that has only one. NULL with one line in `err`.
static dqrelo_delta * load_only_delta(const common_params & params, const llama_model * model, std::string & err) {
    char text[N_ERR]                   = "";
    auto load_params                   = dqrelo_load_default_params();
    load_params.verify                 = params.dqrelo.verify;
    load_params.allow_other_base_bytes = params.dqrelo.allow_other_base;
    load_params.use_mmap               = dqrelo_use_mmap(params);
    load_params.max_scale              = params.dqrelo.max_scale;

    const std::string & path  = params.dqrelo.deltas[0].path;
    dqrelo_delta *      delta = dqrelo_load(model, params.model.path.c_str(), path.c_str(), load_params, text, sizeof(text));
    err                       = text;
    return delta;
}

bool dqrelo_check_applies(dqrelo_delta * delta, llama_context * ctx, dqrelo_applied & applied, std::string & err) {
    char       text[N_ERR] = "";
    const bool ok          = dqrelo_check(ctx, delta, &applied.n_applied, &applied.n_inert, text, sizeof(text));
    err                    = text;
    return ok;
}

void dqrelo_log_loaded(const std::string & name, const dqrelo_delta * delta, const dqrelo_applied & applied, double ms) {
    LOG_INF("delta '%s': %zu bytes, %.1f ms, %d weights applied, %d inert%s%s\n", name.c_str(), dqrelo_n_bytes(delta), ms,
            applied.n_applied, applied.n_inert, inert_names(delta, applied.n_inert).c_str(),
            dqrelo_same_base_file(delta) ? "" : ", made from another quantisation of this base");
}

dqrelo_single_delta::~dqrelo_single_delta() {
    common_sampler_free(sampler);
    if (delta == nullptr) {
        return;
    }
    char err[N_ERR];
    for (uint32_t seq_id = 0; seq_id < llama_n_seq_max(ctx); seq_id++) {
        dqrelo_bind(ctx, (llama_seq_id) seq_id, nullptr, 1.0f, err, sizeof(err));
    }
    dqrelo_free(delta);
}

bool dqrelo_single_delta::init(common_params & params, llama_context * ctx, common_sampler ** sampler) {
    if (params.dqrelo.deltas.empty()) {
        return true;
    }
    const auto & source = params.dqrelo.deltas[0];
    this->ctx           = ctx;

    const int64_t  t_start = ggml_time_us();
    dqrelo_applied applied;
    std::string    reason;
    delta = load_only_delta(params, llama_get_model(ctx), reason);
    if (delta == nullptr || !dqrelo_check_applies(delta, ctx, applied, reason)) {
        dqrelo_log_last_words(source.name, reason);
        return false;
    }
    dqrelo_log_loaded(source.name, delta, applied, (ggml_time_us() - t_start) / 1000.0);

    char err[N_ERR] = "";
    for (uint32_t seq_id = 0; seq_id < llama_n_seq_max(ctx); seq_id++) {
        if (!dqrelo_bind(ctx, (llama_seq_id) seq_id, delta, 1.0f, err, sizeof(err))) {
            dqrelo_log_last_words(source.name, err);
            return false;
        }
    }

    const llama_model * model = llama_get_model(ctx);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const char *        tmpl  = dqrelo_chat_template(delta);
    if (params.chat_template.empty() && tmpl != nullptr) {
        if (!dqrelo_template_check(model, tmpl, reason)) {
            dqrelo_log_last_words(source.name, source.path + ": " + reason);
            return false;
        }
        params.chat_template = tmpl;
    }
    params.sampling.eog = dqrelo_eog_of(delta, vocab);
    if (sampler != nullptr && !params.sampling.eog.empty()) {
        if (params.sampling.ignore_eos) {
            dqrelo_ban_eog(params.sampling.logit_bias, vocab, params.sampling.eog);
        }
        this->sampler = common_sampler_init(model, params.sampling);
        *sampler      = this->sampler;
    }
    return true;
}
