#include "loaded-delta.h"

namespace {

std::string text_or_empty(const char * text) {
    return text == nullptr ? std::string() : std::string(text);
}

} // namespace

loaded_delta::loaded_delta(std::shared_ptr<live_deltas> live, dqrelo_delta * handle, std::vector<std::string> inert) :
    name(text_or_empty(dqrelo_name(handle))),
    path(text_or_empty(dqrelo_path(handle))),
    content_hash(text_or_empty(dqrelo_content_hash(handle))),
    same_base_file(dqrelo_same_base_file(handle)),
    ratio(dqrelo_ratio(handle)),
    n_bytes(dqrelo_n_bytes(handle)),
    n_weights(dqrelo_n_weights(handle)),
    inert(std::move(inert)),
    live(std::move(live)),
    handle(handle) {
    if (const char * text = dqrelo_chat_template(handle)) {
        chat_template = text;
    }
    eog_tokens.resize(dqrelo_eog_tokens(handle, nullptr, 0));
    dqrelo_eog_tokens(handle, eog_tokens.data(), (int32_t) eog_tokens.size());

    std::lock_guard<std::mutex> lock(this->live->mutex);
    this->live->deltas.insert(this);
}

loaded_delta::~loaded_delta() {
    if (!owner.is_this()) {
        return; // The memory belongs to the parent process.
    }
    std::lock_guard<std::mutex> lock(live->mutex);
    live->deltas.erase(this);
    if (handle != nullptr) {
        dqrelo_free(handle);
    }
}

void loaded_delta::close() {
    std::lock_guard<std::mutex> lock(live->mutex);
    if (handle == nullptr) {
        return;
    }
    if (!dqrelo_free(handle)) {
        throw input_error("close: delta '" + name + "' is in use by a running call. Wait for the call to return");
    }
    handle = nullptr;
}

std::optional<std::string> loaded_delta::meta(const std::string & key) const {
    std::lock_guard<std::mutex> lock(live->mutex);
    if (handle == nullptr) {
        throw input_error("delta '" + name + "' is closed");
    }
    const char * text = dqrelo_meta_str(handle, key.c_str());
    return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

bool loaded_delta::is_closed() const {
    std::lock_guard<std::mutex> lock(live->mutex);
    return handle == nullptr;
}

void bind_parts(llama_context * ctx, llama_seq_id seq_id, const blend & parts) {
    std::unique_lock<std::mutex> lock;
    std::vector<dqrelo_part>     handles;
    for (const auto & [delta, scale] : parts) {
        if (!lock.owns_lock()) {
            lock = std::unique_lock<std::mutex>(delta->live->mutex); // It is the session's, so all parts have this one.
        }
        if (delta->handle == nullptr) {
            throw input_error("delta '" + delta->name + "' is closed");
        }
        handles.push_back({ delta->handle, scale });
    }
    char err[1024];
    if (!dqrelo_bind_parts(ctx, seq_id, handles.data(), handles.size(), err, sizeof(err))) {
        throw input_error(err);
    }
}
