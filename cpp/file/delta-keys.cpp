#include "file/delta-keys.h"

#include "file/finite.h"
#include "file/json-text.h"
#include "file/message.h"
#include "file/quality-keys.h"

#include <algorithm>
#include <cinttypes>
#include <cstdlib>
#include <set>

namespace dqrelo {

namespace {

constexpr uint32_t GGUF_FILE_VERSION      = 3;
constexpr uint32_t MAX_DELTA_FILE_VERSION = 2;
constexpr uint32_t ALIGNMENT              = 64;
constexpr int      MAX_OPTIONS_DEPTH      = 32;

constexpr size_t MAX_END_TOKENS          = 64;
constexpr size_t MAX_TEMPLATES           = 64;
constexpr size_t MAX_TEMPLATE_NAME_BYTES = 64;

const char * const KEY_PLANE_RANKS = "dqrelo.weight.plane_ranks";

struct key_rule {
    const char * key;
    gguf_type    type;
    bool         is_array;
    bool         is_required;
};

const key_rule KEY_RULES[] = {
    { "general.architecture", GGUF_TYPE_STRING, false, true },
    { "general.alignment", GGUF_TYPE_UINT32, false, true },
    { "general.name", GGUF_TYPE_STRING, false, true },
    { "dqrelo.method", GGUF_TYPE_STRING, false, true },
    { "dqrelo.converter", GGUF_TYPE_STRING, false, true },
    { "dqrelo.options", GGUF_TYPE_STRING, false, true },
    { "dqrelo.ratio", GGUF_TYPE_FLOAT64, false, true },
    { "dqrelo.content_hash", GGUF_TYPE_STRING, false, true },
    { "dqrelo.reference", GGUF_TYPE_STRING, false, true },
    { "dqrelo.tensor.names", GGUF_TYPE_STRING, true, true },
    { "dqrelo.tensor.types", GGUF_TYPE_STRING, true, true },
    { "dqrelo.tensor.ne", GGUF_TYPE_UINT64, true, true },
    { "dqrelo.tensor.sha256", GGUF_TYPE_STRING, true, true },
    { "dqrelo.weight.names", GGUF_TYPE_STRING, true, true },
    { "dqrelo.weight.ne", GGUF_TYPE_UINT64, true, true },
    { "dqrelo.weight.rank", GGUF_TYPE_UINT32, true, true },
    { "dqrelo.weight.n_planes", GGUF_TYPE_UINT32, true, true },
    { KEY_PLANE_RANKS, GGUF_TYPE_UINT32, true, false }, // required by version 2
    { KEY_N_ENTRIES, GGUF_TYPE_UINT64, true, false },   // required where a weight is sparse
    { "dqrelo.weight.error_delta", GGUF_TYPE_FLOAT32, true, true },
    { "dqrelo.weight.error_weight", GGUF_TYPE_FLOAT32, true, true },
    { "dqrelo.base.name", GGUF_TYPE_STRING, false, true },
    { "dqrelo.base.digest", GGUF_TYPE_STRING, false, true },
    { "dqrelo.base.sample_tensors", GGUF_TYPE_STRING, true, true },
    { "dqrelo.base.samples", GGUF_TYPE_FLOAT32, true, true },
    { "tokenizer.chat_template", GGUF_TYPE_STRING, false, false },
    { "tokenizer.ggml.bos_token_id", GGUF_TYPE_UINT32, false, false },
    { "tokenizer.ggml.eos_token_id", GGUF_TYPE_UINT32, false, false },
    { "tokenizer.ggml.eot_token_id", GGUF_TYPE_UINT32, false, false },
    { "tokenizer.ggml.eom_token_id", GGUF_TYPE_UINT32, false, false },
    { "tokenizer.ggml.padding_token_id", GGUF_TYPE_UINT32, false, false },
    { "tokenizer.ggml.add_bos_token", GGUF_TYPE_BOOL, false, false },
    { "tokenizer.ggml.add_eos_token", GGUF_TYPE_BOOL, false, false },
    { "general.sampling.sequence", GGUF_TYPE_STRING, false, false },
    { "tokenizer.chat_templates", GGUF_TYPE_STRING, true, false },
    { KEY_END_TOKENS, GGUF_TYPE_UINT32, true, false },
    { "dqrelo.token.ids", GGUF_TYPE_UINT32, true, false },
    { "dqrelo.token.texts", GGUF_TYPE_STRING, true, false },
    { "dqrelo.token.types", GGUF_TYPE_INT32, true, false },
};

// Returns a scalar, strings in quotes, or what is there instead.
std::string value_text(const gguf_header & header, const char * key) {
    const gguf_entry * entry = header.find(key);
    if (entry == nullptr || entry->is_array) {
        return entry == nullptr ? "None" : "an array";
    }
    const std::string text = printable(scalar_text(*entry));
    return entry->type == GGUF_TYPE_STRING ? "'" + text + "'" : text;
}

bool check_kind(const gguf_header & header, std::string & err) {
    const std::string kind    = value_text(header, "general.type");
    const std::string adapter = value_text(header, "adapter.type");
    if ((kind == "None" || kind == "'model'") && !header.tensors.empty()) {
        std::string architecture = "None";
        header.get("general.architecture", architecture);
        err = "is a model (architecture " + printable(architecture) + "), not a delta file. A delta is made with dqrelo-convert";
    } else if (kind != "'adapter'") {
        err = "is not a delta file, its general.type is " + kind + ", expected 'adapter'";
    } else if (adapter == "'lora'") {
        err = "is a LoRA adapter, not a delta file. llama-server takes it with --lora";
    } else if (adapter != "'dqrelo'") {
        err = "is not a delta file, its adapter.type is " + adapter + ", expected 'dqrelo'";
    }
    return err.empty();
}

bool check_versions(const gguf_header & header, std::string & err) {
    uint32_t version = 0;
    if (!header.get("dqrelo.version", version)) {
        err = "dqrelo.version is " + value_text(header, "dqrelo.version") + ", expected a UINT32";
    } else if (version < 1 || version > MAX_DELTA_FILE_VERSION) {
        err = message("delta file version %" PRIu32 ", expected 1 or %" PRIu32 "%s", version, MAX_DELTA_FILE_VERSION,
                      version > MAX_DELTA_FILE_VERSION ? ". Update dqrelo-gguf to read it" : "");
    } else if (header.version != GGUF_FILE_VERSION) {
        err = message("GGUF version %" PRIu32 ", expected %" PRIu32, header.version, GGUF_FILE_VERSION);
    }
    return err.empty();
}

bool check_key(const gguf_header & header, const key_rule & rule, std::string & err) {
    const gguf_entry * entry = header.find(rule.key);
    if (entry == nullptr && rule.is_required) {
        err = message("metadata key '%s' is missing", rule.key);
    } else if (entry != nullptr && (entry->type != rule.type || entry->is_array != rule.is_array)) {
        err = message("metadata key '%s' has type %s, expected %s", rule.key, value_type_text(entry->type, entry->is_array).c_str(),
                      value_type_text(rule.type, rule.is_array).c_str());
    }
    return err.empty();
}

// Of the keys that came with version 2 one is there from then on.
bool check_version_of_keys(const gguf_header & header, std::string & err) {
    uint32_t version = 0;
    header.get("dqrelo.version", version);
    for (const char * key : { KEY_PLANE_RANKS, KEY_N_ENTRIES }) {
        if (version < 2 && header.find(key) != nullptr) {
            err = message("metadata key '%s' belongs to version 2", key);
            return false;
        }
    }
    if (version >= 2 && header.find(KEY_PLANE_RANKS) == nullptr) {
        err = message("metadata key '%s' is missing", KEY_PLANE_RANKS);
    }
    return err.empty();
}

// Keys and strings are UTF-8 without NUL, also those that nothing here reads: they are shown, and carried into merged models.
bool check_texts(const gguf_header & header, std::string & err) {
    for (const gguf_entry & entry : header.entries) {
        if (!is_text(entry) || has_nul(entry)) {
            err = message("metadata key '%s': %s", printable(entry.key).c_str(), is_text(entry) ? "has a NUL byte" : "is not UTF-8");
            return false;
        }
    }
    return true;
}

bool check_options(const gguf_header & header, std::string & err) {
    std::string options;
    header.get("dqrelo.options", options);
    if (!is_json_object(options, MAX_OPTIONS_DEPTH)) {
        err = "dqrelo.options is not a JSON object of text and numbers";
    }
    return err.empty();
}

// A key of the base's architecture would make readers take the file for a model.
bool check_no_model_keys(const gguf_header & header, std::string & err) {
    std::string architecture;
    header.get("general.architecture", architecture);
    for (const gguf_entry & entry : header.entries) {
        if (entry.key.rfind(architecture + ".", 0) == 0 && entry.key.rfind("dqrelo.", 0) != 0 && entry.key.rfind("general.", 0) != 0) {
            err = message("metadata key '%s' is a model's, expected none of '%s'", printable(entry.key).c_str(),
                          printable(architecture).c_str());
            return false;
        }
    }
    return true;
}

bool check_token_ids(const gguf_header & header, std::string & err) {
    for (const char * key : TOKEN_ID_KEYS) {
        uint32_t id = 0;
        if (header.get(key, id) && id > INT32_MAX) {
            err = message("metadata key '%s' is %" PRIu32 ", expected a token id under 2^31", key, id);
            return false;
        }
    }
    for (const char * key : { "dqrelo.token.ids", KEY_END_TOKENS }) {
        std::vector<uint32_t> ids;
        header.get(key, ids);
        for (uint32_t id : ids) {
            if (id > INT32_MAX) {
                err = message("metadata key '%s' has %" PRIu32 ", expected token ids under 2^31", key, id);
                return false;
            }
        }
    }
    return true;
}

// A sampling default, under general.sampling, and the values that it may have: finite ones with a meaning, and no more tokens of the past
// than a request can give memory for.
struct sampling_rule {
    const char * key;
    double       min;
    double       max;
};

const sampling_rule SAMPLING_RULES[] = {
    { "general.sampling.top_k", -1, 1e9 },
    { "general.sampling.top_p", 0, 1 },
    { "general.sampling.min_p", 0, 1 },
    { "general.sampling.xtc_probability", 0, 1 },
    { "general.sampling.xtc_threshold", 0, 1 },
    { "general.sampling.temp", -1, 1000 },
    { "general.sampling.penalty_last_n", -1, 1 << 20 },
    { "general.sampling.penalty_repeat", 0.001, 1000 },
    { "general.sampling.mirostat", 0, 2 },
    { "general.sampling.mirostat_tau", 0, 1000 },
    { "general.sampling.mirostat_eta", 0, 1000 },
};

constexpr size_t N_SAMPLERS_MAX = 32; // llama.cpp has eleven; each of the list is made for every request.

bool check_sampling(const gguf_header & header, std::string & err) {
    for (const sampling_rule & rule : SAMPLING_RULES) {
        const gguf_entry * entry = header.find(rule.key);
        if (entry == nullptr) {
            continue;
        }
        if (entry->is_array || entry->type == GGUF_TYPE_STRING || entry->type == GGUF_TYPE_BOOL) {
            err = message("metadata key '%s' has type %s, expected a number", rule.key,
                          value_type_text(entry->type, entry->is_array).c_str());
            return false;
        }
        const double value = strtod(scalar_text(*entry).c_str(), nullptr);
        if (!(value >= rule.min && value <= rule.max)) {
            err = message("metadata key '%s' is %g, expected a number from %g to %g", rule.key, value, rule.min, rule.max);
            return false;
        }
    }
    std::string names;
    header.get("general.sampling.sequence", names);
    const size_t n = 1 + (size_t) std::count(names.begin(), names.end(), ';');
    if (n > N_SAMPLERS_MAX) {
        err = message("metadata key 'general.sampling.sequence' has %zu samplers, expected at most %zu", n, N_SAMPLERS_MAX);
    }
    return err.empty();
}

// A list of end tokens is all of them: at least one, each once, and no more than each token of an answer can be compared with.
bool check_end_tokens(const gguf_header & header, std::string & err) {
    std::vector<uint32_t> ids;
    if (!header.get(KEY_END_TOKENS, ids)) {
        return true;
    }
    const std::set<uint32_t> different(ids.begin(), ids.end());
    if (ids.empty() || ids.size() > MAX_END_TOKENS || different.size() != ids.size()) {
        err = message("metadata key '%s' has %zu tokens, %zu of them different, expected 1 to %zu different ones", KEY_END_TOKENS,
                      ids.size(), different.size(), MAX_END_TOKENS);
    }
    return err.empty();
}

bool is_template_name(const std::string & name) {
    return !name.empty() && name.size() <= MAX_TEMPLATE_NAME_BYTES && std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return c == '_' || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    });
}

// The named chat templates: each a string, and listed once.
bool check_templates(const gguf_header & header, std::string & err) {
    std::vector<std::string> found, listed;
    const std::string        prefix = "tokenizer.chat_template.";
    for (const gguf_entry & entry : header.entries) {
        if (entry.key.rfind(prefix, 0) != 0) {
            continue;
        }
        found.push_back(entry.key.substr(prefix.size()));
        if (!is_template_name(found.back())) {
            err = message("metadata key '%s' has a name of other characters than letters, digits and '_', or too many",
                          printable(entry.key).c_str());
            return false;
        }
        if (entry.type != GGUF_TYPE_STRING || entry.is_array) {
            err = message("metadata key '%s' has type %s, expected STRING", entry.key.c_str(),
                          value_type_text(entry.type, entry.is_array).c_str());
            return false;
        }
    }
    if (found.size() > MAX_TEMPLATES) {
        err = message("has %zu named chat templates, expected at most %zu", found.size(), MAX_TEMPLATES);
        return false;
    }
    header.get("tokenizer.chat_templates", listed);
    std::sort(found.begin(), found.end());
    std::sort(listed.begin(), listed.end());
    if (found != listed) {
        err = "metadata key 'tokenizer.chat_templates' does not list the named chat templates, each once";
    }
    return err.empty();
}

// The three arrays of changed tokens have an entry each for every one.
bool check_changed_tokens(const gguf_header & header, std::string & err) {
    uint64_t n[3] = { 0, 0, 0 };
    for (int i = 0; i < 3; i++) {
        static const char * const keys[] = { "dqrelo.token.ids", "dqrelo.token.texts", "dqrelo.token.types" };
        const gguf_entry * const  entry  = header.find(keys[i]);
        n[i]                             = entry ? entry->n : 0;
    }
    if (n[0] != n[1] || n[0] != n[2]) {
        err = message("dqrelo.token.ids, dqrelo.token.texts, dqrelo.token.types: have [%" PRIu64 ", %" PRIu64 ", %" PRIu64
                      "] entries, expected equal numbers",
                      n[0], n[1], n[2]);
    }
    return err.empty();
}

} // namespace

bool check_delta_keys(const gguf_header & header, std::string & err) {
    err.clear();
    if (!check_kind(header, err) || !check_versions(header, err) || !check_texts(header, err)) {
        return false;
    }
    for (const key_rule & rule : KEY_RULES) {
        if (!check_key(header, rule, err)) {
            return false;
        }
    }
    for (size_t i = 0; const quality_rule * rule = quality_rule_at(i); ++i) {
        if (!check_key(header, { rule->key, quality_type(*rule), false, false }, err)) {
            return false;
        }
    }
    if (!check_version_of_keys(header, err) || !check_values(header, err)) {
        return false;
    }
    if (header.alignment != ALIGNMENT) {
        err = message("general.alignment is %" PRIu32 ", expected %" PRIu32, header.alignment, ALIGNMENT);
        return false;
    }
    return check_no_model_keys(header, err) && check_token_ids(header, err) && check_end_tokens(header, err) &&
           check_changed_tokens(header, err) && check_templates(header, err) && check_options(header, err) && check_sampling(header, err) &&
           check_quality(header, err);
}

} // namespace dqrelo
