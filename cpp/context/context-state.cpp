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

int32_t dqrelo_context::acquire(dqrelo_delta * delta) {
    int32_t free_index = -1;
    for (int32_t i = 0; i < (int32_t) active.size(); i++) {
        if (active[i].delta == delta) {
            free_index = i;
            break;
        }
        if (!active[i].delta && free_index < 0) {
            free_index = i;
        }
    }
    if (free_index < 0) {
        return -1;
    }
    active_delta & s = active[free_index];
    if (!s.delta) {
        tables.set(free_index, *delta);
        s.delta      = delta;
        s.generation = ++n_generations;
        s.own_ubatch = verdict_of(*delta)->own_ubatch;
        grow_composed();
    }
    s.n_bound++;
    delta->n_bound++;
    return free_index;
}

void dqrelo_context::grow_composed() {
    uint32_t n = 0;
    for (const active_delta & s : active) {
        n += s.delta ? verdict_of(*s.delta)->n_composed : 0;
    }
    n_composed = std::max(n_composed, n);
}

void dqrelo_context::release(int32_t i) {
    active_delta & s = active[i];
    s.delta->n_bound--;
    if (--s.n_bound == 0) {
        tables.clear(i);
        s.delta = nullptr;
    }
}

dqrelo_context::binding dqrelo_context::binding_of(const int32_t * seq_ids, int32_t n_seq_ids, bool & agree) const {
    const auto    bound = [this](int32_t seq_id) { return seq_id >= 0 && seq_id < (int32_t) seqs.size() ? seqs[seq_id] : binding(); };
    const binding first = bound(seq_ids[0]);
    agree               = std::all_of(seq_ids, seq_ids + n_seq_ids, [&](int32_t id) { return bound(id) == first; });
    return first;
}

const dqrelo_context::verdict * dqrelo_context::verdict_of(const dqrelo_delta & delta) const {
    const auto it = verdicts.find(delta.file);
    return it == verdicts.end() ? nullptr : &it->second;
}

void dqrelo_context::set_verdict(const dqrelo_delta & delta, const verdict & found) {
    for (auto it = verdicts.begin(); it != verdicts.end();) {
        it = it->first.expired() ? verdicts.erase(it) : std::next(it);
    }
    verdicts[delta.file] = found;
}
