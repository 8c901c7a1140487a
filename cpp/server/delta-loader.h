// delta-loader.h: makes deltas from files, at the start and, on a thread of its own, while the server serves.
#pragma once

#include "delta-reader.h"
#include "delta-registry.h"

#include <functional>
#include <memory>
#include <string>
#include <thread>

struct server_delta_base_deleter {
    void operator()(dqrelo_base * base) const { dqrelo_base_free(base); }
};

// What deltas take from the server's parameters. A copy: the main loop changes its own while it serves.
struct server_delta_settings {
    explicit server_delta_settings(const common_params & params);

    const dqrelo_options         dqrelo;
    const common_params_model    model; // Names the base.
    const common_params_sampling sampling;
    const std::string            chat_template;
    const int                    enable_reasoning;
    const bool                   use_jinja;
    const bool                   use_mmap;
    const bool                   has_api_keys;
};

// What deltas are loaded for. The pointers to the model and its context change only while the loader rests.
struct server_delta_host {
    const server_delta_settings * params    = nullptr;
    const llama_model *           model     = nullptr;
    llama_context *               ctx       = nullptr; // Its graphs are scanned; NULL where that failed.
    const server_chat_params *    chat_base = nullptr;

    std::unique_ptr<dqrelo_base, server_delta_base_deleter> base; // Holds the file that the model was loaded from.
};

// Returns how a delta's file is read.
dqrelo_file_params server_delta_file_params(const server_delta_host & host);

// Loads a file that was read, paced by `decoding`, and checks it against the context's graphs: all that a delta is but for its chat
// template and the file's stamp. NULL with one line in `err`.
std::shared_ptr<server_delta> server_delta_make(const std::string & name, server_delta_file_ptr file, const server_delta_host & host,
                                                const server_delta_decoding & decoding, std::string & err);

// Makes the chat template. False with one line in `err`.
bool server_delta_make_chat(server_delta & delta, const server_delta_host & host, std::string & err);

class server_delta_loader {
public:
    // Runs until destroyed. `wake_main_loop` may be called at any time from its thread.
    server_delta_loader(std::shared_ptr<server_delta_registry> registry, const server_delta_host & host,
                        std::function<void()> wake_main_loop);
    ~server_delta_loader();
    server_delta_loader(const server_delta_loader &)             = delete;
    server_delta_loader & operator=(const server_delta_loader &) = delete;

private:
    void run();
    void size(const server_delta_work & work);
    void load(const server_delta_work & work);

    const std::shared_ptr<server_delta_registry> registry;
    const server_delta_host &                    host;
    const std::function<void()>                  wake_main_loop;
    std::thread                                  thread;
};
