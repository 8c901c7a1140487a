#include "eog.h"

#include <algorithm>
#include <cmath>

static bool contains(const dqrelo_eog & eog, llama_token token) {
    return std::find(eog.begin(), eog.end(), token) != eog.end();
}

bool dqrelo_is_eog(const llama_vocab * vocab, llama_token token, const dqrelo_eog & eog) {
    return eog.empty() ? llama_vocab_is_eog(vocab, token) : contains(eog, token);
}

dqrelo_eog dqrelo_vocab_eog(const llama_vocab * vocab) {
    dqrelo_eog    eog;
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    for (llama_token token = 0; token < n_vocab; token++) {
        if (llama_vocab_is_eog(vocab, token)) {
            eog.push_back(token);
        }
    }
    return eog;
}

void dqrelo_ban_eog(std::vector<llama_logit_bias> & logit_bias, const llama_vocab * vocab, const dqrelo_eog & eog) {
    const auto is_stock_ban = [&](const llama_logit_bias & entry) {
        return std::isinf(entry.bias) && entry.bias < 0 && llama_vocab_is_eog(vocab, entry.token);
    };
    logit_bias.erase(std::remove_if(logit_bias.begin(), logit_bias.end(), is_stock_ban), logit_bias.end());
    for (const llama_token token : eog) {
        logit_bias.push_back({ token, -INFINITY });
    }
}

//
// The grammar of a fine-tune: a sampler around the stock one, which knows only the vocabulary's end tokens.
// It asks the stock sampler about one of those to learn whether the grammar may end, and answers for the fine-tune's tokens itself.
//

struct eog_grammar {
    llama_sampler * inner;     // Owned.
    dqrelo_eog      eog;       // Ends the fine-tune's answers.
    dqrelo_eog      vocab_eog; // Ends the base's answers.
    bool            lazy;

    bool is_special(llama_token token) const { return contains(eog, token) || contains(vocab_eog, token); }

    // Tells whether the grammar accepts an end here. One that sleeps does.
    bool may_end() const {
        if (vocab_eog.empty()) {
            return true; // The stock sampler has no notion of an end, so the fine-tune is never held back.
        }
        llama_token_data       probe       = { vocab_eog[0], 1.0f, 0.0f };
        llama_token_data_array probe_array = { &probe, 1, -1, false };
        llama_sampler_apply(inner, &probe_array);
        return probe.logit != -INFINITY;
    }
};

static eog_grammar & grammar_of(const llama_sampler * smpl) {
    return *static_cast<eog_grammar *>(smpl->ctx);
}

static const char * eog_grammar_name(const llama_sampler * smpl) {
    return llama_sampler_name(grammar_of(smpl).inner);
}

static void eog_grammar_accept(llama_sampler * smpl, llama_token token) {
    const auto & grammar = grammar_of(smpl);
    if (contains(grammar.eog, token)) {
        return; // The answer ends here. The stock sampler would read the token as text.
    }
    llama_sampler_accept(grammar.inner, token);
}

static void eog_grammar_apply(llama_sampler * smpl, llama_token_data_array * cur_p) {
    const auto & grammar = grammar_of(smpl);

    std::vector<llama_token_data> text;  // Holds ordinary tokens, which the stock sampler judges.
    std::vector<size_t>           index; // Holds their places in cur_p.
    text.reserve(cur_p->size);
    index.reserve(cur_p->size);
    for (size_t i = 0; i < cur_p->size; i++) {
        if (!grammar.is_special(cur_p->data[i].id)) {
            text.push_back(cur_p->data[i]);
            index.push_back(i);
        }
    }
    if (!text.empty()) {
        llama_token_data_array text_array = { text.data(), text.size(), -1, false };
        llama_sampler_apply(grammar.inner, &text_array);
    }
    for (size_t i = 0; i < text.size(); i++) {
        cur_p->data[index[i]].logit = text[i].logit;
    }
    if (text.size() == cur_p->size) {
        return;
    }

    const bool may_end = grammar.may_end();
    for (size_t i = 0; i < cur_p->size; i++) {
        const llama_token token = cur_p->data[i].id;
        // A token that ends only the base's answers is no text of a grammar either, but a lazy grammar may be asleep.
        const bool allowed = !grammar.is_special(token) || (may_end && (contains(grammar.eog, token) || grammar.lazy));
        if (!allowed) {
            cur_p->data[i].logit = -INFINITY;
        }
    }
}

static void eog_grammar_reset(llama_sampler * smpl) {
    llama_sampler_reset(grammar_of(smpl).inner);
}

static void eog_grammar_free(llama_sampler * smpl) {
    auto * grammar = &grammar_of(smpl);
    llama_sampler_free(grammar->inner);
    delete grammar;
}

static llama_sampler * eog_grammar_clone(const llama_sampler * smpl);

static llama_sampler_i eog_grammar_iface = {
    /* .name              = */ eog_grammar_name,
    /* .accept            = */ eog_grammar_accept,
    /* .apply             = */ eog_grammar_apply,
    /* .reset             = */ eog_grammar_reset,
    /* .clone             = */ eog_grammar_clone,
    /* .free              = */ eog_grammar_free,
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

static llama_sampler * eog_grammar_clone(const llama_sampler * smpl) {
    const auto & grammar = grammar_of(smpl);
    return llama_sampler_init(&eog_grammar_iface,
                              new eog_grammar{ llama_sampler_clone(grammar.inner), grammar.eog, grammar.vocab_eog, grammar.lazy });
}

llama_sampler * dqrelo_grammar_init(llama_sampler * grammar, const llama_vocab * vocab, const dqrelo_eog & eog, bool lazy) {
    if (grammar == nullptr || eog.empty()) {
        return grammar;
    }
    return llama_sampler_init(&eog_grammar_iface, new eog_grammar{ grammar, eog, dqrelo_vocab_eog(vocab), lazy });
}
