// loaded-delta.h: a loaded delta as the bindings hold it.
#pragma once

#include "dqrelo.h"
#include "process.h"

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

// What the caller got wrong, or what the C API refused: one line.
struct input_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class loaded_delta;

// A delta that a sequence runs on, and how much of it.
struct blend_part {
    std::shared_ptr<loaded_delta> delta; // not NULL
    float                         scale = 1.0f;
    bool                          operator==(const blend_part & other) const { return delta == other.delta && scale == other.scale; }
};
// Empty is the base. End tokens, and how a text begins, are those of the first part.
using blend = std::vector<blend_part>;

// The deltas of one session that are loaded. The mutex guards each delta's handle; nothing that may call Python runs under it.
struct live_deltas {
    std::mutex               mutex;
    std::set<loaded_delta *> deltas;
};

// Facts are copied at load, so they can be read after the delta was closed. Freed by close(), the destructor, or the session's end.
class loaded_delta {
public:
    // Takes `handle` over. `inert`: the weights that no graph of the session's context reads.
    loaded_delta(std::shared_ptr<live_deltas> live, dqrelo_delta * handle, std::vector<std::string> inert);
    ~loaded_delta();
    loaded_delta(const loaded_delta &)             = delete;
    loaded_delta & operator=(const loaded_delta &) = delete;

    // Frees the delta; nothing happens if it was freed before. Throws input_error while it is bound to a sequence.
    void close();

    // Returns a metadata value of the file as text. Throws input_error if the delta is closed.
    std::optional<std::string> meta(const std::string & key) const;

    bool is_closed() const;
    bool belongs_to(const live_deltas * other) const { return live.get() == other; }

    std::string                name;
    std::string                path;
    std::string                content_hash;
    std::optional<std::string> chat_template; // None means the base's.
    bool                       same_base_file;
    double                     ratio;
    size_t                     n_bytes;
    int32_t                    n_weights;
    std::vector<std::string>   inert;
    std::vector<llama_token>   eog_tokens; // Empty means the base's.

private:
    friend class session;
    friend void bind_parts(llama_context * ctx, llama_seq_id seq_id, const std::vector<blend_part> & parts);

    std::shared_ptr<live_deltas> live;
    dqrelo_delta *               handle; // NULL once the delta is freed.
    const process                owner;
};

// Binds a blend of one session's deltas to a sequence. Throws input_error if one is closed or the C API refuses.
void bind_parts(llama_context * ctx, llama_seq_id seq_id, const blend & parts);
