// delta-set.h: the deltas of a server, as upstream's code sees them: names, what a request gets from its delta, and the hooks of the main
// loop.
#pragma once

#include "delta-blends.h"
#include "delta-loader.h"
#include "delta-caller.h"
#include "delta-folder.h"
#include "delta-ref.h"
#include "delta-registry.h"
#include "delta-resolver.h"
#include "delta-watch.h"
#include "server-common.h"
#include "server-task.h"

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

struct server_http_req;
struct server_queue;

// What a request asks to be loaded.
struct server_delta_load {
    std::string name;
    // The file is in --deltas-dir, or at an address; one of them. Both empty means the one that the name has, or would have there.
    std::string file;
    std::string address;
    bool        is_pinned = false;
    bool        is_reload = false; // Takes the place of what is loaded.
    std::string if_hash;           // Changes only a name that has this content hash; empty: any.
};

class server_delta_set {
public:
    // Makes the deltas of `params` known, and loads those that are to be there from the start; `model_name` is the base's. Logs one line a
    // delta, or one error line and returns false. Called again after a sleep: what was loaded then comes back beside the first requests.
    bool load(const common_params & params, llama_context * ctx, const std::string & model_name);

    // Unbinds and frees all deltas; must go before the context does.
    void unload(llama_context * ctx);

    // Makes the chat templates from the base's chat parameters, and starts loading beside the main loop, which is woken through `queue`.
    // Once, after load. False after an error line.
    bool start(const llama_model * model, const server_chat_params & chat_base, server_queue & queue);

    // Between two steps of the main loop: unbinds from idle slots what is to go.
    void update(llama_context * ctx, const std::function<bool(int id_slot)> & is_busy);

    // Requests that wait for a delta fail from here on.
    void stop() const;

    // What follows is asked by a request `req` with this `body`. Who sent it decides what there is for it: without a caller, nothing. Where
    // it throws, it is server_delta_error, or std::invalid_argument for a field that makes no sense.

    // Finds what "model", "deltas" and "delta_scale" mean; waits until the deltas can serve.
    server_delta_ref find(const server_http_req & req, const json & body);

    // Returns the chat parameters of the delta, or of a blend's lead part; waits as find does. Weights that find gives to the same request
    // later are of the same file.
    std::shared_ptr<const server_chat_params> chat_params(const server_http_req & req, const json & body,
                                                          const server_chat_params & chat_base);

    // Does the same for the vocabulary.
    server_delta_vocab vocab(const server_http_req & req, const json & body, const llama_vocab * base);

    // Returns the name of the delta or blend, or an empty one for the base.
    std::string wanted_name(const server_http_req & req, const json & body);

    // Returns the deltas that a request for a slot file names, checked, a line each; empty where it names none.
    std::string slot_model(const server_http_req & req, const json & body);

    // Returns the answer of /v1/models, made from `models`, which has the base; of /v1/models/NAME where that is the request's path.
    json models(const server_http_req & req, const json & models);

    // Throws std::runtime_error unless a slot file computed under `key` may be restored; `parts` is what slot_model gave.
    void check_slot_file(const std::string & key, const std::string & parts) const;

    // After a batch of n tokens from `first` on: an error line if what slot `id_slot` computed, its outputs at `rows` included, is not
    // finite; empty where it is. The slot's answer ends then, and what it left in the memory goes with dqrelo_forget.
    std::string check_finite(const server_delta_ref & ref, llama_context * ctx, int id_slot, const std::vector<int32_t> & rows,
                             int32_t first, int32_t n) const;

    // These are the endpoints (delta-admin.cpp, delta-metrics.cpp). Where they throw, it is server_delta_error or std::invalid_argument. A
    // change has happened when they return.
    json list(const server_http_req & req);
    // Returns the text of /metrics: upstream's `figures`, and those of the deltas.
    std::string metrics(server_task_result_metrics & figures) const;
    // Returns the answer of /props for the model of the query, made from the base's. Waits as find does.
    json props(const server_http_req & req, json base);
    // Brings the delta of the query in, and wakes the server for it, if it is one.
    void prepare(const server_http_req & req);
    bool is_loaded(const server_http_req & req, const std::string & name) const;
    // Names a blend, whose parts must be known; `lead` is the part whose template it has, empty for the first one.
    json admin_blend(const server_http_req & req, const std::string & name, std::vector<dqrelo_blend_part> parts, const std::string & lead);
    json admin_load(const server_http_req & req, const server_delta_load & load);
    void admin_unload(const server_http_req & req, const std::string & name, const std::string & if_hash = "");

private:
    json list_models(const server_delta_caller & caller, json models);
    bool is_allowed(const server_delta_caller & caller, const std::string & name) const; // An empty name is the base.
    // Returns what a caller may see of a text about the file at `path`: without its directory for a limited key.
    std::string shown(const server_delta_caller & caller, std::string text, const std::string & path) const;
    json        row_json(const server_delta_caller & caller, const server_delta_registry::row & row) const;
    json        blends_json(const server_delta_caller & caller) const;
    void        check_admin(const server_delta_caller & caller) const;
    void        check_free(const std::string & name) const;

    server_delta_stamp file_of(const server_delta_load & load, const server_should_stop & should_stop) const;
    bool               is_base_name(const std::string & name) const;
    std::string        short_name(const server_delta_caller & caller, const std::string & name);
    std::string        vllm_metrics(const server_task_result_metrics & figures, const std::vector<server_delta_registry::row> & rows) const;
    void               note_busy(llama_context * ctx, const std::function<bool(int id_slot)> & is_busy);
    std::string        names(const server_delta_caller & caller) const; // Lists them as an error line does.
    void               log_table() const;
    bool               add_all();
    void               take_in_files();
    void               look_for_files();
    bool               open_base(const common_params & params);
    bool               open_resolver();
    bool               scan_graphs(llama_context * ctx);
    bool               load_first(const std::vector<dqrelo_delta_source> & sources);
    bool               load_one(const dqrelo_delta_source & source);

    // What a request asked for; without parts it is the base. Each part is known and allowed.
    dqrelo_blend                            wanted(const server_http_req & req, const json & body);
    std::optional<dqrelo_blend>             blend_of(const server_delta_caller & caller, const std::string & model) const;
    bool                                    has_delta(const std::string & name);
    bool                                    may_use(const server_delta_caller & caller, const dqrelo_blend & blend) const;
    [[noreturn]] void                       refuse_name(const server_delta_caller & caller, const std::string & name) const;
    void                                    check_parts(const server_delta_caller & caller, const dqrelo_blend & blend);
    float                                   scale_of(const server_http_req & req, const json & body, const dqrelo_blend & blend) const;
    std::shared_ptr<const server_delta_use> hold(const server_http_req & req, const dqrelo_blend & blend) const;
    void                                    add_blend(const dqrelo_blend & blend, const std::string & what);

    std::shared_ptr<server_delta_registry>       registry; // NULL is a server without deltas.
    std::unique_ptr<const server_delta_settings> settings;
    std::unique_ptr<server_delta_folder>         folder;
    std::unique_ptr<server_delta_resolver>       resolver; // NULL: nothing is loaded by address.
    server_delta_blends                          blends;
    server_delta_host                            host;
    std::vector<std::string>                     base_names; // The id comes first, then aliases and the file's name.
    size_t                                       n_slots = 0;
    std::atomic<double>                          cache_usage{ 0.0 }; // How full the KV cache was at the last step; see note_busy.
    std::unique_ptr<server_delta_loader>         loader;
    std::unique_ptr<server_delta_watch>          watch;
};

// Makes a task run under `ref`: its tokens are marked as the delta's, its sampler ends with the delta's tokens, its answer carries the
// delta's name.
void server_delta_apply(const server_delta_ref & ref, const llama_vocab * vocab, server_task & task);

// Returns the vocabulary of a request under `ref`.
server_delta_vocab server_delta_vocab_of(const server_delta_ref & ref, const llama_vocab * base);

// The defaults of a request under `ref`: those of `base`, and the fine-tune's sampling where there is a delta.
class server_delta_params {
public:
    server_delta_params(const server_delta_ref & ref, const common_params & base);
    operator const common_params &() const { return own ? *own : base; }

private:
    const common_params &        base;
    std::optional<common_params> own;
};

// Makes sequence `id_slot` run under `ref` from the next decode on. Returns an error line, empty on success.
std::string server_delta_bind(const server_delta_ref & ref, llama_context * ctx, int id_slot);

// Returns whether slots with these may share a batch: an encoder reads all of it at once, and some deltas need that to themselves
// (dqrelo_needs_own_batch).
bool server_delta_can_batch(const server_delta_ref & a, const server_delta_ref & b, const llama_context * ctx);
