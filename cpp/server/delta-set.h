// delta-set.h: the deltas of a server: loading, names, and what a request gets from its delta.
#pragma once

#include "delta-ref.h"
#include "server-common.h"
#include "server-task.h"

#include <memory>
#include <vector>

class server_delta_set {
public:
    // Loads every delta of `params` for the context's model; `model_name` is the base's. Logs one line a delta, or one error line and returns false.
    // Called again after a sleep: the entries stay, only their handles are new.
    bool load(const common_params & params, llama_context * ctx, const std::string & model_name);

    // Unbinds and frees all deltas; must go before the context does.
    void unload(llama_context * ctx);

    // Makes a chat template for each delta, and registers this set in the base's chat parameters. Once, after load. False after an error line.
    bool init_chat(const common_params & params, const llama_model * model, server_chat_params & chat_base);

    // What "model" and "delta_scale" of a request mean. Throws server_model_not_found, or std::invalid_argument for a scale that is none.
    server_delta_ref find(const json & body) const;

    // The chat parameters for a request.
    const server_chat_params & chat_params(const json & body, const server_chat_params & chat_base) const;

    // Throws std::runtime_error unless a slot file computed under `key` may be restored; `model_name` is the delta that the request named, or empty.
    void check_slot_file(const std::string & key, const std::string & model_name) const;

    // Adds the deltas to the answer of /v1/models.
    json list_models(json models) const;

private:
    struct entry {
        server_delta       delta;
        server_chat_params chat;   // the base's, with the delta's template
    };

    const entry * find_entry(const std::string & name) const;
    bool          is_base_name(const std::string & name) const;
    std::string   names() const;
    bool          check_names() const;

    std::vector<std::unique_ptr<entry>> entries;
    std::vector<std::string>            base_names;  // the id first, then aliases and the file's name
    std::string                         base_path;
    bool                                unknown_is_base = false;
    bool                                one_for_all     = false;
};

// Makes a task run under `ref`: its tokens are marked as the delta's, its sampler ends with the delta's tokens, its answer carries the delta's name.
void server_delta_apply(const server_delta_ref & ref, const llama_vocab * vocab, server_task & task);

// Makes sequence `id_slot` run under `ref` from the next decode on. Returns an error line, empty on success.
std::string server_delta_bind(const server_delta_ref & ref, llama_context * ctx, int id_slot);
