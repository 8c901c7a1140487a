#include "delta-loader.h"

#include "delta-sampling.h"
#include "file/error-text.h"
#include "template-chat.h"

#include <utility>

static const size_t N_ERR = 1024; // bytes of an error line

//
// a delta from its file
//

server_delta_settings::server_delta_settings(const common_params & params) :
    dqrelo(params.dqrelo),
    model(params.model),
    sampling(params.sampling),
    chat_template(params.chat_template),
    enable_reasoning(params.enable_reasoning),
    use_jinja(params.use_jinja),
    use_mmap(dqrelo_use_mmap(params)),
    has_api_keys(!params.api_keys.empty()) {}

dqrelo_file_params server_delta_file_params(const server_delta_host & host) {
    auto file_params     = dqrelo_file_default_params();
    file_params.verify   = host.params->dqrelo.verify;
    file_params.use_mmap = host.params->use_mmap;
    file_params.on_cpu   = dqrelo_on_cpu(host.model);
    return file_params;
}

// Returns the quality record of a delta's file, or null.
static json quality_of(const dqrelo_delta * handle) {
    json         record;
    const char * name    = nullptr;
    const char * value   = nullptr;
    bool         is_text = false;
    for (int32_t i = 0; (name = dqrelo_quality(handle, i, &value, &is_text)) != nullptr; i++) {
        if (value != nullptr) {
            record[name] = is_text ? json(value) : json::parse(value);
        }
    }
    return record;
}

std::shared_ptr<server_delta> server_delta_make(const std::string & name, server_delta_file_ptr file, const server_delta_host & host,
                                                const server_delta_decoding & decoding, std::string & err) {
    if (!host.base) {
        err = "the base's file could not be identified when the server woke";
        return nullptr;
    }
    if (host.ctx == nullptr) {
        err = "the model's graphs could not be built when the server woke";
        return nullptr;
    }
    auto delta                         = std::make_shared<server_delta>();
    char text[N_ERR]                   = "";
    auto load_params                   = dqrelo_load_default_params();
    load_params.allow_other_base_bytes = host.params->dqrelo.allow_other_base;
    load_params.max_scale              = host.params->dqrelo.max_scale;
    server_delta_pace(load_params, decoding);
    delta->handle = dqrelo_load_opened(host.model, host.base.get(), file.release(), load_params, text, sizeof(text));
    err           = text;
    if (delta->handle == nullptr || !dqrelo_check_applies(delta->handle, host.ctx, delta->applied, err)) {
        return nullptr;
    }
    delta->name     = name;
    delta->path     = dqrelo_path(delta->handle);
    delta->hash     = dqrelo_content_hash(delta->handle);
    delta->ratio    = dqrelo_ratio(delta->handle);
    delta->quality  = quality_of(delta->handle);
    delta->eog      = dqrelo_eog_of(delta->handle, llama_model_get_vocab(host.model));
    delta->vocab    = server_delta_vocab(llama_model_get_vocab(host.model), delta->handle);
    delta->sampling = host.params->sampling;

    size_t       n_bytes = 0;
    const char * memory  = nullptr;
    for (int32_t i = 0; (memory = dqrelo_memory(delta->handle, i, &n_bytes)) != nullptr; i++) {
        delta->memory[memory] = n_bytes;
        delta->n_bytes += n_bytes;
    }
    server_delta_read_sampling(delta->handle, delta->sampling);
    return delta;
}

//
// chat templates
//

static std::string piece_of(const llama_vocab * vocab, llama_token token) {
    return token == LLAMA_TOKEN_NULL ? "" : common_token_to_piece(vocab, token, true);
}

// The template for requests with tools: the delta's; where it has no template at all, the base's.
static std::string tool_use_source(const server_delta & delta, const server_delta_host & host) {
    const char * own = dqrelo_meta_str(delta.handle, "tokenizer.chat_template.tool_use");
    if (own != nullptr) {
        return own;
    }
    const bool has_other = dqrelo_chat_template(delta.handle) != nullptr || !host.params->chat_template.empty();
    return has_other ? "" : common_chat_templates_source(host.chat_base->tmpls.get(), "tool_use");
}

bool server_delta_make_chat(server_delta & delta, const server_delta_host & host, std::string & err) {
    const auto &               params = *host.params;
    const server_chat_params & base   = *host.chat_base;
    const llama_vocab *        vocab  = llama_model_get_vocab(host.model);
    const std::string          bos    = piece_of(vocab, delta.vocab.bos);
    const std::string          eos    = piece_of(vocab, delta.vocab.eos);
    const char *               tmpl   = dqrelo_chat_template(delta.handle);
    std::string                source = tmpl != nullptr ? tmpl : params.chat_template;
    if (source.empty() && (delta.vocab.bos != llama_vocab_bos(vocab) || delta.vocab.eos != llama_vocab_eos(vocab))) {
        source = common_chat_templates_source(base.tmpls.get());
    }
    auto & chat = delta.chat;
    try {
        if (!source.empty()) {
            dqrelo_template_parse(source); // Upstream's init would log three lines for an error.
        }
        // Upstream's function takes these tokens for the template where it gets no model to take them from.
        chat.tmpls = source.empty() ? common_chat_templates_init(host.model, "") : common_chat_templates_init(nullptr, source, bos, eos);
        common_chat_templates_set_special(chat.tmpls.get(), delta.vocab.add_bos, delta.vocab.add_eos);
        const std::string tool_use = tool_use_source(delta, host);
        if (!tool_use.empty()) {
            dqrelo_template_parse(tool_use);
            common_chat_templates_set_tool_use(chat.tmpls.get(), tool_use);
        }
        chat.enable_thinking =
            params.enable_reasoning != 0 && params.use_jinja && common_chat_templates_support_enable_thinking(chat.tmpls.get());
    } catch (const std::exception & e) {
        err = delta.path + ": " + dqrelo_template_error_text(e);
        return false;
    }
    chat.use_jinja                = base.use_jinja;
    chat.prefill_assistant        = base.prefill_assistant;
    chat.reasoning_format         = base.reasoning_format;
    chat.chat_template_kwargs     = base.chat_template_kwargs;
    chat.allow_image              = base.allow_image;
    chat.allow_audio              = base.allow_audio;
    chat.allow_video              = base.allow_video;
    chat.reasoning_budget         = base.reasoning_budget;
    chat.reasoning_budget_message = base.reasoning_budget_message;
    chat.media_path               = base.media_path;
    chat.force_pure_content       = base.force_pure_content;
    return true;
}

//
// the thread
//

server_delta_loader::server_delta_loader(std::shared_ptr<server_delta_registry> registry, const server_delta_host & host,
                                         std::function<void()> wake_main_loop) :
    registry(std::move(registry)), host(host), wake_main_loop(std::move(wake_main_loop)), thread([this] { run(); }) {}

server_delta_loader::~server_delta_loader() {
    registry->end();
    thread.join();
}

void server_delta_loader::run() {
    server_delta_work work;
    bool              keeps_memory = false; // No longer than until the load that it is kept for.
    while (registry->next_work(work, !keeps_memory)) {
        const bool kept = std::exchange(keeps_memory, work.to_free && work.makes_room);
        if (keeps_memory) {
            dqrelo_keep_memory(true);
        }
        if (work.to_free) {
            work.to_free->free_handle();
            SRV_INF("delta '%s': freed, %zu bytes\n", work.to_free->name.c_str(), work.to_free->n_bytes);
            registry->freed();
        } else if (work.to_size) {
            size(work);
        } else if (work.to_load) {
            load(work);
        } else if (work.wants_main_loop) {
            wake_main_loop();
        }
        if (kept && !keeps_memory) {
            dqrelo_keep_memory(false);
        }
    }
    dqrelo_keep_memory(false);
}

void server_delta_loader::size(const server_delta_work & work) {
    auto params        = server_delta_file_params(host);
    params.header_only = true;
    const auto reading =
        server_delta_read_file(work.to_size->path, params, registry->decoding(), [&] { return registry->is_wanted(work); });
    if (reading.is_silent) {
        registry->put_off(work, reading.err);
    } else if (registry->begin_loading(work)) {
        if (!reading.file) {
            SRV_ERR("delta '%s': %s\n", work.name.c_str(), reading.err.c_str());
        }
        registry->sized(work, reading.file ? dqrelo_file_bytes_needed(host.model, reading.file.get()) : 0, reading.err, reading.stamp);
    }
}

void server_delta_loader::load(const server_delta_work & work) {
    const int64_t                 t_start = ggml_time_us();
    std::string                   err;
    server_delta_stamp            stamp;
    std::shared_ptr<server_delta> delta;
    try {
        auto reading = server_delta_read_file(work.to_load->path, server_delta_file_params(host), registry->decoding(),
                                              [&] { return registry->is_wanted(work); });
        if (reading.is_silent) {
            registry->put_off(work, reading.err);
            return;
        }
        err   = reading.err;
        stamp = reading.stamp;
        if (reading.file && registry->begin_loading(work)) {
            delta = server_delta_make(work.name, std::move(reading.file), host, registry->decoding(), err);
        }
        if (delta && !server_delta_make_chat(*delta, host, err)) {
            delta.reset();
        }
        if (delta) {
            delta->stamp   = stamp;
            delta->load_ms = (double) (ggml_time_us() - t_start) / 1000.0;
        }
    } catch (const std::exception & e) { // Memory may run out.
        err = work.to_load->path + ": " + dqrelo::exception_text(e);
        delta.reset();
    }
    if (delta) {
        dqrelo_log_loaded(delta->name, delta->handle, delta->applied, delta->load_ms);
    } else {
        SRV_ERR("delta '%s': %s\n", work.name.c_str(), err.c_str());
    }
    registry->loaded(work, delta, err, stamp);
}
