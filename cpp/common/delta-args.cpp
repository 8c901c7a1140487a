#include "delta-args.h"

#include "arg.h"
#include "common.h"
#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

// Splits at commas outside quotes: "a,\"b,c\"" becomes the items a and b,c.
static std::vector<std::string> split_list(const std::string & value) {
    std::vector<std::string> items(1);
    bool                     quoted = false;
    for (const char ch : value) {
        if (ch == '"') {
            quoted = !quoted;
        } else if (ch == ',' && !quoted) {
            items.emplace_back();
        } else {
            items.back() += ch;
        }
    }
    return items;
}

// Makes "math" of dir/math.dq.gguf.
static std::string name_from_path(const std::string & path) {
    std::string name = path.substr(path.find_last_of("/\\") + 1);
    for (const std::string suffix : { ".gguf", ".dq" }) {
        if (name.size() > suffix.size() && string_ends_with(name, suffix)) {
            name.resize(name.size() - suffix.size());
        }
    }
    return name;
}

static dqrelo_delta_source parse_source(const std::string & item) {
    const size_t eq = item.find('=');
    // What has a separator before its '=' is a path that contains one, such as dir/a=b.dq.gguf or C:\x=y.dq.gguf.
    const bool          is_named = eq != std::string::npos && item.find_first_of("/\\") > eq;
    dqrelo_delta_source source;
    source.path = is_named ? item.substr(eq + 1) : item;
    source.name = is_named ? item.substr(0, eq) : name_from_path(item);
    if (source.name.empty() || source.path.empty()) {
        throw std::invalid_argument("--delta '" + item + "': expected [NAME=]PATH");
    }
    return source;
}

void dqrelo_add_deltas(dqrelo_options & options, const std::string & value) {
    for (const auto & item : split_list(value)) {
        const auto source = parse_source(item);
        const auto same   = std::find_if(options.deltas.begin(), options.deltas.end(),
                                         [&](const dqrelo_delta_source & other) { return other.name == source.name; });
        if (same != options.deltas.end()) {
            throw std::invalid_argument("--delta '" + source.path + "': the name '" + source.name + "' is taken by '" + same->path +
                                        "'. Give it another one: --delta NAME=PATH");
        }
        options.deltas.push_back(source);
    }
}

static void set_unknown(common_params & params, const std::string & value) {
    if (value != "error" && value != "base") {
        throw std::invalid_argument("--delta-unknown '" + value + "': expected error or base");
    }
    params.dqrelo.unknown_is_base = value == "base";
}

static void set_names(common_params & params, const std::string & value) {
    if (value != "plain" && value != "prefixed") {
        throw std::invalid_argument("--delta-names '" + value + "': expected plain or prefixed");
    }
    params.dqrelo.names_are_prefixed = value == "prefixed";
}

static void add_pins(common_params & params, const std::string & value) {
    for (const auto & name : split_list(value)) {
        if (name.empty()) {
            throw std::invalid_argument("--delta-pin '" + value + "': expected a name, or several with commas between");
        }
        params.dqrelo.pinned.push_back(name);
    }
}

// {"key": ["name", ...], ...}. The keys become API keys of the server, too.
static void read_keys(common_params & params, const std::string & path) {
    const std::string expected = "--delta-keys '" + path + "': expected a JSON object {\"key\": [\"name\", ...], ...}";
    std::ifstream     file(path);
    if (!file) {
        throw std::invalid_argument("--delta-keys '" + path + "': cannot be read");
    }
    common_json keys;
    try {
        keys = common_json::parse(std::string(std::istreambuf_iterator<char>(file), {}));
    } catch (const std::exception &) {
        throw std::invalid_argument(expected); // What was parsed holds secrets, so it is not repeated.
    }
    if (!keys.is_object() || keys.empty()) {
        throw std::invalid_argument(expected);
    }
    for (const auto & [key, names] : keys.items()) {
        if (key.empty() || !names.is_array()) {
            throw std::invalid_argument(expected);
        }
        for (const auto & name : names) {
            if (!name.is_string()) {
                throw std::invalid_argument(expected);
            }
            params.dqrelo.keys[key].push_back(name.get<std::string>());
        }
        params.dqrelo.keys[key]; // A key without names is listed too: it may use nothing.
        params.api_keys.push_back(key);
    }
}

static size_t positive(const char * option, int value) {
    if (value <= 0) {
        throw std::invalid_argument(std::string(option) + " " + std::to_string(value) + ": expected a number above 0");
    }
    return (size_t) value;
}

static void set_shutdown(common_params & params, const std::string & value) {
    char *       end     = nullptr;
    const double seconds = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !(seconds >= 0.0 && seconds <= 86400.0)) {
        throw std::invalid_argument("--shutdown-timeout '" + value + "': expected seconds, 0 to 86400");
    }
    params.dqrelo.shutdown_s = seconds;
}

// The program llama-server makes up to 1024 HTTP threads beside those of --threads-http. Some must be left for what waits for no delta.
static const int N_WAITING_MAX = 960;

static size_t waiting_max(int value) {
    if (value <= 0 || value > N_WAITING_MAX) {
        throw std::invalid_argument("--delta-max-waiting " + std::to_string(value) + ": expected a number from 1 to " +
                                    std::to_string(N_WAITING_MAX));
    }
    return (size_t) value;
}

static void set_max_scale(common_params & params, const std::string & value) {
    char *      end   = nullptr;
    const float scale = std::strtof(value.c_str(), &end);
    if (end == value.c_str() || *end != '\0' || !std::isfinite(scale) || scale < 1.0f) {
        throw std::invalid_argument("--delta-max-scale '" + value + "': expected a finite number, 1 or more");
    }
    params.dqrelo.max_scale = scale;
}

static void add_only_delta(common_params & params, const std::string & value) {
    dqrelo_add_deltas(params.dqrelo, value);
    if (params.dqrelo.deltas.size() > 1) {
        throw std::invalid_argument("--delta: this program runs one delta, got " + std::to_string(params.dqrelo.deltas.size()) +
                                    ". Several at once are served by llama-server");
    }
    params.dqrelo.one_for_all = true;
}

void dqrelo_add_args(const std::function<void(common_arg)> & add) {
    add(common_arg(
            { "--delta" }, "[NAME=]PATH",
            "serve a fine-tune from its delta file (*.dq.gguf) under NAME (default: the file's name); may be repeated, or comma-separated",
            [](common_params & params, const std::string & value) { dqrelo_add_deltas(params.dqrelo, value); })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA"));
    add(common_arg({ "--delta" }, "[NAME=]PATH", "run a fine-tune from its delta file (*.dq.gguf) over the base model", add_only_delta)
            .set_examples({ LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY })
            .set_env("LLAMA_ARG_DELTA"));
    add(common_arg({ "--deltas-dir" }, "DIR",
                   "serve every *.dq.gguf in DIR under its name without that ending; each is loaded when it is first asked for",
                   [](common_params & params, const std::string & value) { params.dqrelo.deltas_dir = value; })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTAS_DIR"));
    add(common_arg(
            { "--blend" }, "NAME=SPEC[,template=PART]",
            "serve several deltas at once under NAME: SPEC is DELTA*SCALE+DELTA*SCALE, up to 8; the chat template and end tokens are "
            "the first part's, or PART's; may be repeated",
            [](common_params & params, const std::string & value) {
                params.dqrelo.blends.push_back(dqrelo_parse_named_blend(value, "--blend"));
            })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_BLEND"));
    add(common_arg({ "--delta-memory" }, "MiB",
                   "memory that all loaded deltas may take together, the devices' included; the least recently used ones go when another "
                   "one is asked for (default: no limit)",
                   [](common_params & params, int value) { params.dqrelo.n_bytes_max = positive("--delta-memory", value) << 20; })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_MEMORY"));
    add(common_arg({ "--delta-pin" }, "NAME",
                   "a delta that is loaded at the start and never goes to make room; several with commas between", add_pins)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_PIN"));
    add(common_arg(
            { "--delta-max-active" }, "N",
            "how many different deltas run at a time; requests for more wait their turn, first come first served (default: no limit)",
            [](common_params & params, int value) { params.dqrelo.n_active_max = positive("--delta-max-active", value); })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_MAX_ACTIVE"));
    add(common_arg(
            { "--delta-max-waiting" }, "N",
            "how many requests wait for a load or a turn of a delta at a time; more get a 503 with a Retry-After header (default: 512)",
            [](common_params & params, int value) { params.dqrelo.n_waiting_max = waiting_max(value); })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_MAX_WAITING"));
    add(common_arg({ "--delta-admin" }, { "--no-delta-admin" },
                   "whether deltas are loaded, unloaded and reloaded over HTTP (default: only where an API key is asked for)",
                   [](common_params & params, bool value) { params.dqrelo.admin = value; })
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_ADMIN"));
    add(common_arg({ "--delta-keys" }, "FILE",
                   "API keys that may use some models only: a JSON object {\"key\": [\"name\", ...], ...}; they cannot load or unload",
                   read_keys)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_KEYS"));
    add(common_arg({ "--delta-unknown" }, "{error,base}",
                   "what a request for an unknown model name gets when deltas are loaded: a 404, or the base (default: error)", set_unknown)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_UNKNOWN"));
    add(common_arg({ "--delta-names" }, "{plain,prefixed}",
                   "what deltas are called: with prefixed, BASE_DELTA and BASE:DELTA are names of a delta, too, and /v1/models lists the "
                   "first, as KubeAI does (default: plain)",
                   set_names)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_NAMES"));
    add(common_arg({ "--shutdown-timeout" }, "SECONDS",
                   "how long running requests may finish after SIGTERM or SIGINT; then they end with an error (default: 5)", set_shutdown)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_SHUTDOWN_TIMEOUT"));
    add(common_arg({ "--delta-max-scale" }, "N",
                   "the largest absolute value of a request's \"delta_scale\" and of a part's scale: larger ones make a model's numbers "
                   "overflow (default: 4)",
                   set_max_scale)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_MAX_SCALE"));
    add(common_arg({ "--delta-verify" },
                   "check the SHA-256 of every tensor at every load of a delta (default: once for a file, until it changes)",
                   [](common_params & params) { params.dqrelo.verify = true; })
            .set_examples({ LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY })
            .set_env("LLAMA_ARG_DELTA_VERIFY"));
    add(common_arg({ "--delta-allow-other-base" }, "accept a delta that was made from another quantisation of this base (default: refuse)",
                   [](common_params & params) { params.dqrelo.allow_other_base = true; })
            .set_examples({ LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY })
            .set_env("LLAMA_ARG_DELTA_ALLOW_OTHER_BASE"));
}
