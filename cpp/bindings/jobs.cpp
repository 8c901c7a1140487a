#include "jobs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

void logits_job::on_row(size_t pos, const float * row) {
    memcpy(out + (pos - first_output) * (size_t) n_vocab, row, (size_t) n_vocab * sizeof(float));
}

size_t score_job::add(std::vector<llama_token> targets) {
    const size_t n_tokens = n_context + targets.size() - 1;
    continuations.emplace_back();
    continuations.back().targets = std::move(targets);
    if (continuations.size() == 1) {
        first_output = n_context - 1;
        begin(0);
    }
    return n_tokens;
}

void score_job::begin(size_t i) {
    const std::vector<llama_token> & targets = continuations[i].targets;
    tokens.resize(n_context);
    tokens.insert(tokens.end(), targets.begin(), targets.end() - 1); // Nothing is predicted from the last token.
    i_cur = i;
}

void score_job::on_row(size_t pos, const float * row) {
    const float * best  = std::max_element(row, row + n_vocab);
    double        total = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        total += std::exp((double) row[i] - *best);
    }
    const size_t i_target = pos - (n_context - 1);
    const bool   is_first = i_target == 0; // The row after the context is that of all continuations.
    for (size_t i = is_first ? 0 : i_cur; i < (is_first ? continuations.size() : i_cur + 1); ++i) {
        continuation &    cur    = continuations[i];
        const llama_token target = cur.targets[i_target];
        cur.sum += (double) row[target] - *best - std::log(total);
        cur.is_greedy = cur.is_greedy && best - row == target;
    }
}

bool score_job::go_on(size_t & n_kept) {
    const auto has_more = [](const continuation & cur) { return cur.targets.size() > 1; };
    const auto next     = std::find_if(continuations.begin() + (ptrdiff_t) i_cur + 1, continuations.end(), has_more);
    if (next == continuations.end()) {
        return false;
    }
    begin((size_t) (next - continuations.begin()));
    first_output = n_kept = n_context;
    return true;
}

generation::generation(const llama_vocab * vocab, ended_fn ended) :
    vocab(vocab), ended(std::move(ended)), candidates((size_t) llama_vocab_n_tokens(vocab)) {}

generate_job::generate_job(generation & all, const generate_params & params) : all(all), params(params) {
    if (params.temperature <= 0.0f) {
        return;
    }
    sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (params.top_k > 0) {
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_top_k(params.top_k));
    }
    if (params.top_p < 1.0f) {
        llama_sampler_chain_add(sampler.get(), llama_sampler_init_top_p(params.top_p, 1));
    }
    llama_sampler_chain_add(sampler.get(), llama_sampler_init_temp(params.temperature));
    llama_sampler_chain_add(sampler.get(), llama_sampler_init_dist(params.seed));
}

llama_token generate_job::sample(const float * row) {
    std::vector<llama_token_data> & candidates = all.candidates;
    for (size_t i = 0; i < candidates.size(); ++i) {
        candidates[i] = { (llama_token) i, row[i], 0.0f };
    }
    // Some vocabularies list tokens that must never be generated.
    int32_t             n_suppressed = 0;
    const llama_token * suppressed   = llama_vocab_get_suppress_tokens(all.vocab, &n_suppressed);
    for (int32_t i = 0; i < n_suppressed; ++i) {
        candidates[suppressed[i]].logit = -INFINITY;
    }
    if (sampler == nullptr) {
        const auto is_less = [](const llama_token_data & a, const llama_token_data & b) { return a.logit < b.logit; };
        return std::max_element(candidates.begin(), candidates.end(), is_less)->id;
    }
    llama_token_data_array array = { candidates.data(), candidates.size(), -1, false };
    llama_sampler_apply(sampler.get(), &array);
    const llama_token token = array.data[array.selected].id;
    llama_sampler_accept(sampler.get(), token);
    return token;
}

bool generate_job::is_end(llama_token token) const {
    if (parts.empty() || parts[0].delta->eog_tokens.empty()) {
        return llama_vocab_is_eog(all.vocab, token);
    }
    const std::vector<llama_token> & eog = parts[0].delta->eog_tokens;
    return std::find(eog.begin(), eog.end(), token) != eog.end();
}

// Returns true if the text holds a stop text that ends behind byte n_before; it is then cut before the first one.
bool generate_job::cut_at_stop(size_t n_before) {
    size_t first = std::string::npos;
    for (const std::string & stop : params.stop) {
        const size_t from = n_before >= stop.size() ? n_before - stop.size() + 1 : 0;
        first             = std::min(first, result.text.find(stop, from));
    }
    if (first == std::string::npos) {
        return false;
    }
    result.text.resize(first);
    return true;
}

void generate_job::on_row(size_t /*pos*/, const float * row) {
    if (all.goes_on && !append(sample(row))) {
        all.goes_on = all.ended(number, result.tokens.size());
    }
}

// Returns whether the sequence goes on.
bool generate_job::append(llama_token token) {
    if (is_end(token)) {
        return false;
    }
    const size_t n_before = result.text.size();
    result.text += token_piece(all.vocab, token, false);
    result.tokens.push_back(token);
    if (cut_at_stop(n_before) || result.tokens.size() >= (size_t) params.max_tokens) {
        return false;
    }
    first_output = tokens.size();
    tokens.push_back(token);
    return true;
}

std::string token_piece(const llama_vocab * vocab, llama_token token, bool special) {
    std::string piece(32, '\0');
    int32_t     n = llama_token_to_piece(vocab, token, &piece[0], (int32_t) piece.size(), 0, special);
    if (n < 0) {
        piece.resize((size_t) -n);
        n = llama_token_to_piece(vocab, token, &piece[0], (int32_t) piece.size(), 0, special);
    }
    piece.resize((size_t) std::max(n, 0));
    return piece;
}
