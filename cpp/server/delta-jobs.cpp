#include "delta-jobs.h"

#include <algorithm>

std::shared_ptr<server_delta_job> server_delta_jobs::ask(server_delta_entry & entry, const std::string & path, bool is_reload) {
    if (!entry.job) {
        entry.job            = std::make_shared<server_delta_job>();
        entry.job->path      = path;
        entry.job->is_reload = is_reload;
        queue.push_back(entry.name);
    }
    return entry.job;
}

void server_delta_jobs::finish(server_delta_entry & entry, int error_type, const std::string & error) {
    entry.job->is_done    = true;
    entry.job->error_type = error_type;
    entry.job->error      = error;
    if (error.empty()) {
        entry.n_entitled += entry.job->n_waiting;
    }
    entry.job.reset();
    queue.erase(std::remove(queue.begin(), queue.end(), entry.name), queue.end());
}

void server_delta_jobs::put_off(const server_delta_entry & entry) {
    queue.erase(std::remove(queue.begin(), queue.end(), entry.name), queue.end());
    queue.push_back(entry.name);
}
