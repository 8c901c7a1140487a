#include "file/quality-keys.h"

#include "file/delta-layout.h"
#include "file/message.h"

#include <cstdint>

namespace dqrelo {

namespace {

constexpr double KL_MAX        = 1e6; // nats
constexpr double COUNT_MAX     = INT32_MAX;
constexpr double RETENTION_MAX = 1e6;

const char * const KEY_LOW  = "dqrelo.quality.retention_low";
const char * const KEY_HIGH = "dqrelo.quality.retention_high";

const quality_rule RULES[] = {
    { "dqrelo.quality.evaluator", quality_rule::TEXT, quality_rule::MEASURE, 0, 0 },
    { "dqrelo.quality.tuned_sha256", quality_rule::DIGEST, quality_rule::MEASURE, 0, 0 },
    { "dqrelo.quality.base_digest", quality_rule::DIGEST, quality_rule::MEASURE, 0, 0 },
    { "dqrelo.quality.text", quality_rule::TEXT, quality_rule::ON_TEXT, 0, 0 },
    { "dqrelo.quality.text_sha256", quality_rule::DIGEST, quality_rule::ON_TEXT, 0, 0 },
    { "dqrelo.quality.n_ctx", quality_rule::COUNT, quality_rule::ON_TEXT, 1, COUNT_MAX },
    { "dqrelo.quality.n_tokens", quality_rule::COUNT, quality_rule::ON_TEXT, 1, COUNT_MAX },
    { "dqrelo.quality.kl", quality_rule::NUMBER, quality_rule::ON_TEXT, 0, KL_MAX },
    { "dqrelo.quality.kl_error", quality_rule::NUMBER, quality_rule::ON_TEXT, 0, KL_MAX },
    { "dqrelo.quality.kl_base", quality_rule::NUMBER, quality_rule::ON_TEXT, 0, KL_MAX },
    { "dqrelo.quality.top_p", quality_rule::NUMBER, quality_rule::ON_TEXT, 0, 1 },
    { "dqrelo.quality.problems", quality_rule::TEXT, quality_rule::ON_PROBLEMS, 0, 0 },
    { "dqrelo.quality.problems_sha256", quality_rule::DIGEST, quality_rule::ON_PROBLEMS, 0, 0 },
    { "dqrelo.quality.n_problems", quality_rule::COUNT, quality_rule::ON_PROBLEMS, 1, COUNT_MAX },
    { "dqrelo.quality.retention", quality_rule::NUMBER, quality_rule::ON_PROBLEMS, -RETENTION_MAX, RETENTION_MAX },
    { KEY_LOW, quality_rule::NUMBER, quality_rule::ON_PROBLEMS, -RETENTION_MAX, RETENTION_MAX },
    { KEY_HIGH, quality_rule::NUMBER, quality_rule::ON_PROBLEMS, -RETENTION_MAX, RETENTION_MAX },
};

bool check_value(const gguf_header & header, const quality_rule & rule, std::string & err) {
    std::string text;
    uint32_t    count  = 0;
    double      number = 0.0;
    if (header.get(rule.key, count)) {
        number = count;
    } else if (!header.get(rule.key, number)) {
        header.get(rule.key, text);
    }
    if (rule.kind == quality_rule::DIGEST && !is_sha256_text(text)) {
        err = message("%s is '%s', expected 64 lower-case hex digits", rule.key, printable(text).c_str());
    } else if (rule.kind == quality_rule::TEXT && text.size() > QUALITY_TEXT_BYTES_MAX) {
        err = message("metadata key '%s' has a text of %zu bytes, expected at most %zu", rule.key, text.size(), QUALITY_TEXT_BYTES_MAX);
    } else if ((rule.kind == quality_rule::COUNT || rule.kind == quality_rule::NUMBER) && !(number >= rule.least && number <= rule.most)) {
        err = message("metadata key '%s' is %g, expected a number from %g to %g", rule.key, number, rule.least, rule.most);
    }
    return err.empty();
}

} // namespace

const quality_rule * quality_rule_at(size_t i) {
    return i < sizeof(RULES) / sizeof(RULES[0]) ? &RULES[i] : nullptr;
}

gguf_type quality_type(const quality_rule & rule) {
    switch (rule.kind) {
        case quality_rule::COUNT: return GGUF_TYPE_UINT32;
        case quality_rule::NUMBER: return GGUF_TYPE_FLOAT64;
        default: return GGUF_TYPE_STRING;
    }
}

bool check_quality(const gguf_header & header, std::string & err) {
    bool has_part[3] = { false, false, false };
    for (const quality_rule & rule : RULES) {
        has_part[rule.part] = has_part[rule.part] || header.find(rule.key) != nullptr;
    }
    if (!has_part[quality_rule::MEASURE] && !has_part[quality_rule::ON_TEXT] && !has_part[quality_rule::ON_PROBLEMS]) {
        return true;
    }
    if (!has_part[quality_rule::ON_TEXT] && !has_part[quality_rule::ON_PROBLEMS]) {
        err = "has a quality record without a measure, expected one on text or on problems";
        return false;
    }
    has_part[quality_rule::MEASURE] = true;
    for (const quality_rule & rule : RULES) {
        if (has_part[rule.part] && header.find(rule.key) == nullptr) {
            err = message("metadata key '%s' is missing", rule.key);
            return false;
        }
        if (has_part[rule.part] && !check_value(header, rule, err)) {
            return false;
        }
    }
    double low  = 0.0;
    double high = 0.0;
    if (header.get(KEY_LOW, low) && header.get(KEY_HIGH, high) && low > high) {
        err = message("%s is %g, expected at most %s, %g", KEY_LOW, low, KEY_HIGH, high);
    }
    return err.empty();
}

} // namespace dqrelo
