#include "delta-args.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <stdexcept>

// "a,\"b,c\"" -> a | b,c
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

// dir/math.dq.gguf -> math
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
    // what has a separator before its '=' is a path that contains one: dir/a=b.dq.gguf, C:\x=y.dq.gguf
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
    add(common_arg(
            { "--delta" }, "[NAME=]PATH",
            "run a fine-tune from its delta file (*.dq.gguf) over the base model",
            add_only_delta)
            .set_examples({ LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY })
            .set_env("LLAMA_ARG_DELTA"));
    add(common_arg(
            { "--delta-unknown" }, "{error,base}",
            "what a request for an unknown model name gets when deltas are loaded: a 404, or the base (default: error)",
            set_unknown)
            .set_examples({ LLAMA_EXAMPLE_SERVER })
            .set_env("LLAMA_ARG_DELTA_UNKNOWN"));
    add(common_arg(
            { "--delta-verify" },
            "check the digest of every tensor of a delta before serving it (default: disabled)",
            [](common_params & params) { params.dqrelo.verify = true; })
            .set_examples({ LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY })
            .set_env("LLAMA_ARG_DELTA_VERIFY"));
    add(common_arg(
            { "--delta-allow-other-base" },
            "accept a delta that was made from another quantisation of this base (default: refuse)",
            [](common_params & params) { params.dqrelo.allow_other_base = true; })
            .set_examples({ LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY })
            .set_env("LLAMA_ARG_DELTA_ALLOW_OTHER_BASE"));
}
