// The part of server_delta_set that counts: lines of /metrics, and the table in the log at the start.
#include "delta-set.h"

#include <algorithm>

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

std::string server_delta_set::metrics() const {
    if (!registry) {
        return "";
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
    std::string text;
    const auto  counts = registry->all_counts();
    for (const auto & counter : counters) {
        metric lines(counter.name, "counter", counter.help);
        for (const auto & [name, of_delta] : counts) {
            lines.add(name, counter.value(of_delta));
        }
        text += lines.lines("counter", counter.help);
    }
    metric resident("resident_bytes", "gauge", "Bytes in memory, the devices' included");
    metric running("requests_running", "gauge", "Requests that hold the delta");
    for (const auto & row : registry->rows()) {
        resident.add(row.entry.name, (double) row.n_resident);
        running.add(row.entry.name, row.n_running);
    }
    return text + resident.lines("gauge", "Bytes in memory, the devices' included") + running.lines("gauge", "Requests that hold a delta");
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
