// The registry's part for requests that ask for several deltas at once.
#include "delta-change.h"
#include "delta-registry.h"

#include <algorithm>

// One request's right to bring in the parts of a blend. While it lives, they are not put out to make room: a request that holds one part
// and waits for another would never get that if the first had to go for it.
class server_delta_registry::blend_turn {
public:
    blend_turn(server_delta_registry & registry, const std::vector<std::string> & parts, const server_should_stop & should_stop) :
        registry(registry), parts(parts) {
        visit  visit(registry, parts[0], should_stop, /*is_admin =*/false);
        change mine(registry);
        while (registry.is_blend_coming) {
            visit.pause(mine);
        }
        mark(true);
    }

    ~blend_turn() {
        const change mine(registry);
        mark(false);
        registry.waiting.wake_all();
    }

    blend_turn(const blend_turn &)             = delete;
    blend_turn & operator=(const blend_turn &) = delete;

private:
    void mark(bool is_awaited) {
        registry.is_blend_coming = is_awaited;
        for (auto & [name, entry] : registry.names.all()) {
            entry.is_awaited = is_awaited && std::find(parts.begin(), parts.end(), name) != parts.end();
        }
    }

    server_delta_registry &        registry;
    const std::vector<std::string> parts;
};

// Returns holds on all parts if each is loaded and may start, else NULL.
std::shared_ptr<const server_delta_use> server_delta_registry::take_all(const std::vector<std::string> & parts) {
    auto                              use = std::make_shared<server_delta_use>(); // It ends after the lock, which its holds take.
    const change                      mine(*this);
    std::vector<server_delta_entry *> entries;
    size_t                            n_idle = 0;
    for (const auto & name : parts) {
        server_delta_entry * entry = names.find_open(name);
        if (entry == nullptr || !entry->current || entry->is_leaving) {
            return nullptr;
        }
        n_idle += entry->current->n_uses == 0;
        entries.push_back(entry);
    }
    if (!turns.may_start_more(n_idle, memory.n_active(names))) {
        return nullptr;
    }
    use->holds.reserve(entries.size());
    for (auto * entry : entries) {
        use->holds.push_back(hold(*entry));
    }
    return use;
}

std::shared_ptr<const server_delta_use> server_delta_registry::acquire_all(const std::vector<std::string> & parts,
                                                                           const server_should_stop &       should_stop) {
    if (limits.n_active_max > 0 && parts.size() > limits.n_active_max) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE, string_format("a blend of %zu deltas, but this server runs %zu at a time "
                                                                       "(--delta-max-active)",
                                                                       parts.size(), limits.n_active_max));
    }
    auto use = std::make_shared<server_delta_use>();
    if (parts.size() == 1) {
        use->holds.push_back(acquire(parts[0], should_stop));
        return use;
    }
    if (auto all = take_all(parts)) {
        return all;
    }
    const blend_turn turn(*this, parts, should_stop);
    for (const auto & name : parts) {
        use->holds.push_back(acquire(name, should_stop));
    }
    return use;
}
