// delta-loader.h: makes deltas from files, at the start and, on a thread of its own, while the server serves.
#pragma once

#include "delta-registry.h"

#include <functional>
#include <memory>
#include <string>
#include <thread>

// What deltas are loaded for. The pointers change only while the loader rests.
struct server_delta_host {
    const common_params *      params    = nullptr;
    const llama_model *        model     = nullptr;
    const server_chat_params * chat_base = nullptr;
};

// Reads a file: all that a delta is but for its chat template. NULL with one line in `err`.
std::shared_ptr<server_delta> server_delta_read(const std::string & name, const std::string & path, const server_delta_host & host,
                                                bool verify, std::string & err);

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
    void load(const server_delta_work & work);

    const std::shared_ptr<server_delta_registry> registry;
    const server_delta_host &                    host;
    const std::function<void()>                  wake_main_loop;
    std::thread                                  thread;
};
