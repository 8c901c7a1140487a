#include "delta-turns.h"

void server_delta_turns::line_up(const server_delta_claim & claim) {
    line[claim.ticket] = &claim;
}

void server_delta_turns::leave(const server_delta_claim & claim) {
    line.erase(claim.ticket);
}

bool server_delta_turns::may_start(const server_delta_entry & entry, uint64_t ticket, size_t n_active) const {
    if (n_active_max == 0) {
        return true;
    }
    if (!line.empty() && line.begin()->first < ticket) {
        return false;
    }
    return entry.current->n_uses > 0 || n_active < n_active_max;
}

server_delta_claim::server_delta_claim(server_delta_waiter & waiter, server_delta_names & names, server_delta_memory & memory,
                                       server_delta_turns & turns) :
    ticket(turns.draw()), waiter(waiter), names(names), memory(memory), turns(turns) {}

void server_delta_claim::line_up(server_delta_entry & entry) {
    if (!is_on(entry)) {
        drop();
        entry.n_entitled++;
        is_entitled = true;
        order       = entry.order;
    }
    turns.line_up(*this);
}

void server_delta_claim::wait_for(const server_delta_entry & entry, const std::shared_ptr<server_delta_job> & wanted) {
    drop();
    job   = wanted;
    order = entry.order;
    job->n_waiting++;
}

void server_delta_claim::loaded() {
    is_entitled = job->error.empty();
    job.reset();
}

void server_delta_claim::drop() {
    if (job && !job->is_done) {
        job->n_waiting--;
    }
    const auto entry = names.find(waiter.name);
    const bool is_up = job ? job->is_done && job->error.empty() : is_entitled;
    if (is_up && entry != nullptr && entry->order == order) {
        entry->n_entitled--;
        memory.retire_if_left(*entry);
    }
    turns.leave(*this);
    job.reset();
    is_entitled = false;
}
