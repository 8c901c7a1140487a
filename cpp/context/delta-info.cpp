// What a loaded delta is: the queries of dqrelo.h.
#include "context/delta.h"

#include "dqrelo.h"
#include "file/quality-keys.h"

#include <cstring>

const char * dqrelo_name(const dqrelo_delta * delta) {
    return delta->file->name().c_str();
}
const char * dqrelo_path(const dqrelo_delta * delta) {
    return delta->file->path().c_str();
}
const char * dqrelo_content_hash(const dqrelo_delta * delta) {
    return delta->file->content_hash().c_str();
}

const char * dqrelo_chat_template(const dqrelo_delta * delta) {
    const auto & tmpl = delta->file->chat_template();
    return tmpl ? tmpl->c_str() : nullptr;
}

const char * dqrelo_meta_str(const dqrelo_delta * delta, const char * key) {
    const auto it = delta->meta.find(key);
    return it == delta->meta.end() ? nullptr : it->second.c_str();
}

const char * dqrelo_quality(const dqrelo_delta * delta, int32_t i, const char ** value, bool * is_text) {
    const dqrelo::quality_rule * rule = i < 0 ? nullptr : dqrelo::quality_rule_at((size_t) i);
    if (rule == nullptr) {
        return nullptr;
    }
    *value   = dqrelo_meta_str(delta, rule->key);
    *is_text = dqrelo::quality_type(*rule) == GGUF_TYPE_STRING;
    return rule->key + strlen("dqrelo.quality.");
}

bool dqrelo_same_base_file(const dqrelo_delta * delta) {
    return delta->same_base_file;
}
double dqrelo_ratio(const dqrelo_delta * delta) {
    return delta->file->ratio();
}
size_t dqrelo_n_bytes(const dqrelo_delta * delta) {
    return delta->file->n_bytes();
}
int32_t dqrelo_n_weights(const dqrelo_delta * delta) {
    return (int32_t) delta->file->weights().size();
}
int32_t dqrelo_n_bound(const dqrelo_delta * delta) {
    return delta->n_bound;
}

int32_t dqrelo_eog_tokens(const dqrelo_delta * delta, llama_token * ids, int32_t n_max) {
    for (int32_t i = 0; i < (int32_t) delta->eog.size() && i < n_max; i++) {
        ids[i] = delta->eog[i];
    }
    return (int32_t) delta->eog.size();
}

const char * dqrelo_memory(const dqrelo_delta * delta, int32_t i, size_t * n_bytes) {
    if (i < 0 || i >= (int32_t) delta->memory.size()) {
        return nullptr;
    }
    *n_bytes = delta->memory[i].second;
    return delta->memory[i].first.c_str();
}

const char * dqrelo_inert_weight(const dqrelo_delta * delta, int32_t i) {
    return i >= 0 && i < (int32_t) delta->inert.size() ? delta->inert[i].c_str() : nullptr;
}
