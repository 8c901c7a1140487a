// The part of server_delta_set that counts: lines of /metrics, and the table in the log at the start.
#include "delta-set.h"

#include <algorithm>
#include <chrono>
#include <set>

// Returns a value between the quotes of a Prometheus label.
static std::string label_value(const std::string & text) {
    std::string value;
    for (const char ch : text) {
        if (ch == '\n') {
            value += "\\n";
        } else {
            value += ch == '"' || ch == '\\' ? std::string("\\") + ch : std::string(1, ch);
        }
    }
    return value;
}

// One metric: a line a delta, and one for all of them.
class metric {
public:
    metric(const char * name, const char * type, const char * help) : name(name) {
        text = string_format("# HELP llamacpp:delta_%s %s\n# TYPE llamacpp:delta_%s %s\n", name, help, name, type);
    }

    void add(const std::string & delta, double value) {
        text += string_format("llamacpp:delta_%s{delta=\"%s\"} %.15g\n", name, label_value(delta).c_str(), value);
        total += value;
    }

    std::string lines(const char * type, const char * help) const {
        return text +
               string_format("# HELP llamacpp:deltas_%s %s, of all deltas.\n# TYPE llamacpp:deltas_%s %s\nllamacpp:deltas_%s %.15g\n", name,
                             help, name, type, name, total);
    }

private:
    const char * name;
    std::string  text;
    double       total = 0.0;
};

// Returns names as vLLM lists them. A comma cannot be escaped there, so a name with one is left out.
static std::string label_list(const std::set<std::string> & names) {
    std::string list;
    for (const auto & name : names) {
        if (name.find(',') == std::string::npos) {
            list += (list.empty() ? "" : ",") + name;
        }
    }
    return label_value(list);
}

// The figures by which gateways choose a server, under the names that vLLM has for them.
std::string server_delta_set::vllm_metrics(const server_task_result_metrics &              figures,
                                           const std::vector<server_delta_registry::row> & rows) const {
    const auto            waiting = registry->waiting_requests();
    std::set<std::string> running;
    for (const auto & row : rows) {
        if (row.n_running > 0) {
            running.insert(row.entry.name);
        }
    }
    const size_t n_max = registry->limits.n_active_max;
    const double now_s = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    const double usage = figures.n_processing_slots == 0 ? 0.0 : cache_usage.load();
    std::string  text  = "# HELP vllm:lora_requests_info Deltas with running and with waiting requests; the value is the time.\n"
                         "# TYPE vllm:lora_requests_info gauge\n";
    text += string_format("vllm:lora_requests_info{max_lora=\"%zu\",running_lora_adapters=\"%s\",waiting_lora_adapters=\"%s\"} %.3f\n",
                          n_max == 0 ? n_slots : std::min(n_max, n_slots), label_list(running).c_str(),
                          label_list({ waiting.begin(), waiting.end() }).c_str(), now_s);
    const auto add = [&](const char * name, const char * help, double value) {
        text += string_format("# HELP vllm:%s %s.\n# TYPE vllm:%s gauge\nvllm:%s{model_name=\"%s\"} %.15g\n", name, help, name, name,
                              label_value(base_names[0]).c_str(), value);
    };
    add("num_requests_running", "Requests that run in a slot", figures.n_processing_slots);
    add("num_requests_waiting", "Requests that wait for a slot, for a load or for a turn",
        (double) figures.n_tasks_deferred + (double) waiting.size());
    add("kv_cache_usage_perc", "How full the KV cache is with running requests, 0 to 1", usage);
    add("gpu_cache_usage_perc", "The same, by its older name", usage);
    return text;
}

std::string server_delta_set::metrics(server_task_result_metrics & figures) const {
    if (!registry) {
        return figures.to_metrics();
    }
    struct counter {
        const char * name;
        const char * help;
        double (*value)(const server_delta_counts &);
    };
    static const counter counters[] = {
        { "requests_total", "Requests", [](const server_delta_counts & c) { return (double) c.n_requests; } },
        { "prompt_tokens_total", "Prompt tokens processed", [](const server_delta_counts & c) { return (double) c.n_prompt; } },
        { "tokens_predicted_total", "Tokens generated", [](const server_delta_counts & c) { return (double) c.n_generated; } },
        { "loads_total", "Loads of a file", [](const server_delta_counts & c) { return (double) c.n_loads; } },
        { "load_failures_total", "Loads that failed", [](const server_delta_counts & c) { return (double) c.n_failures; } },
        { "load_seconds_total", "Seconds spent on loading", [](const server_delta_counts & c) { return c.load_s; } },
        { "evictions_total", "Times put out to make room", [](const server_delta_counts & c) { return (double) c.n_evictions; } },
    };
    std::string text   = figures.to_metrics();
    const auto  counts = registry->all_counts();
    for (const auto & counter : counters) {
        metric lines(counter.name, "counter", counter.help);
        for (const auto & [name, of_delta] : counts) {
            lines.add(name, counter.value(of_delta));
        }
        text += lines.lines("counter", counter.help);
    }
    metric     resident("resident_bytes", "gauge", "Bytes in memory, the devices' included");
    metric     running("requests_running", "gauge", "Requests that hold the delta");
    const auto rows = registry->rows();
    for (const auto & row : rows) {
        resident.add(row.entry.name, (double) row.n_resident);
        running.add(row.entry.name, row.n_running);
    }
    return text + resident.lines("gauge", "Bytes in memory, the devices' included") + running.lines("gauge", "Requests that hold a delta") +
           vllm_metrics(figures, rows);
}

void server_delta_set::log_table() const {
    const double mib    = 1024.0 * 1024.0;
    double       n_all  = 0.0;
    size_t       n_wide = 5;
    const auto   rows   = registry->rows();
    for (const auto & row : rows) {
        n_all += (double) row.entry.n_bytes;
        n_wide = std::max(n_wide, row.entry.name.size());
    }
    SRV_INF("%-*s  %-10s  %10s  %s\n", (int) n_wide, "model", "state", "MiB", "file");
    SRV_INF("%-*s  %-10s  %10.1f  %s\n", (int) n_wide, "", "base", (double) llama_model_size(host.model) / mib,
            host.params->model.path.c_str());
    for (const auto & row : rows) {
        SRV_INF("%-*s  %-10s  %10.1f  %s%s\n", (int) n_wide, row.entry.name.c_str(), row.entry.state(), (double) row.entry.n_bytes / mib,
                row.entry.path.c_str(), row.entry.is_pinned ? " (pinned)" : "");
    }
    const std::string budget =
        registry->limits.n_bytes_max == 0 ? "no limit" : string_format("%.1f MiB", (double) registry->limits.n_bytes_max / mib);
    SRV_INF("deltas: %zu, %.1f MiB loaded, %.1f MiB if all were, --delta-memory: %s\n", rows.size(), (double) registry->n_resident() / mib,
            n_all / mib, budget.c_str());
}
