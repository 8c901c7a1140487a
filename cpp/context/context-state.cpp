#include "context/context-state.h"

#include "context/delta.h"

#include <algorithm>
#include <iterator>

dqrelo_context::dqrelo_context(uint32_t n_seq_max) : active(n_seq_max), seqs(n_seq_max), not_finite(n_seq_max), tables(n_seq_max) {}

dqrelo_context::~dqrelo_context() {
    for (const active_delta & s : active) {
        if (s.delta) {
            s.delta->n_bound -= s.n_bound;
        }
    }
}

void dqrelo_context::acquire(int32_t seq_id, const std::vector<std::pair<dqrelo_delta *, float>> & parts) {
    auto sorted = parts;
    std::sort(sorted.begin(), sorted.end(), [](const auto & a, const auto & b) {
        const int order = a.first->file->content_hash().compare(b.first->file->content_hash());
        return order != 0 ? order < 0 : a.second < b.second; // One file may be loaded twice.
    });
    seqs[seq_id].reserve(sorted.size());
    try {
        for (const auto & [delta, request_scale] : sorted) {
            seqs[seq_id].push_back({ acquire_index(delta), request_scale });
        }
    } catch (...) {
        release(seq_id);
        throw;
    }
    n_most_parts = std::max(n_most_parts, (uint32_t) sorted.size());
}

void dqrelo_context::release(int32_t seq_id) {
    for (const part & p : seqs[seq_id]) {
        release_index(p.delta_index);
    }
    seqs[seq_id].clear();
}

int32_t dqrelo_context::acquire_index(dqrelo_delta * delta) {
    const auto    has = [delta](const active_delta & s) { return s.delta == delta; };
    const int32_t i   = (int32_t) (std::find_if(active.begin(), active.end(), has) - active.begin());
    const int32_t at  = i < (int32_t) active.size() ? i : free_index();

    active_delta & s = active[at];
    if (!s.delta) {
        tables.set(at, *delta);
        s.delta      = delta;
        s.generation = ++n_generations;
        s.own_ubatch = verdict_of(*delta)->own_ubatch;
        grow_composed();
    }
    s.n_bound++;
    delta->n_bound++;
    return at;
}

// Where every index is taken, tables with twice as many are made in place of these.
int32_t dqrelo_context::free_index() {
    const auto is_free = [](const active_delta & s) { return !s.delta; };
    const auto found   = std::find_if(active.begin(), active.end(), is_free);
    const auto at      = (int32_t) (found - active.begin());
    if (found == active.end()) {
        dqrelo::delta_tables larger(2 * active.size(), tables.version() + 1);
        for (size_t i = 0; i < active.size(); i++) {
            larger.set(i, *active[i].delta);
        }
        active.resize(2 * active.size());
        tables = std::move(larger);
    }
    return at;
}

void dqrelo_context::grow_composed() {
    uint32_t n = 0;
    for (const active_delta & s : active) {
        n += s.delta ? verdict_of(*s.delta)->n_composed : 0;
    }
    n_composed = std::max(n_composed, n);
}

void dqrelo_context::release_index(int32_t i) {
    active_delta & s = active[i];
    s.delta->n_bound--;
    if (--s.n_bound == 0) {
        tables.clear(i);
        s.delta = nullptr;
    }
}

const dqrelo_context::binding & dqrelo_context::binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const {
    static const binding base;
    const auto           bound = [this](int32_t seq_id) -> const binding & {
        return seq_id >= 0 && seq_id < (int32_t) seqs.size() ? seqs[seq_id] : base;
    };
    const binding & first = bound(seq_ids[0]);
    agree                 = std::all_of(seq_ids, seq_ids + n_seq_ids, [&](int32_t id) { return bound(id) == first; });
    return first;
}

std::optional<dqrelo_context::verdict> dqrelo_context::verdict_of(const dqrelo_delta & delta) const {
    const std::lock_guard<std::mutex> lock(verdicts_mutex);
    const auto                        it = verdicts.find(delta.file);
    return it == verdicts.end() ? std::nullopt : std::optional<verdict>(it->second);
}

void dqrelo_context::set_verdict(const dqrelo_delta & delta, const verdict & found) {
    const std::lock_guard<std::mutex> lock(verdicts_mutex);
    for (auto it = verdicts.begin(); it != verdicts.end();) {
        it = it->first.expired() ? verdicts.erase(it) : std::next(it);
    }
    verdicts[delta.file] = found;
}
