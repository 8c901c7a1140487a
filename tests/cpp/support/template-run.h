// template-run.h: reads a chat template and makes a prompt with it, within the bounds, on a stack of the smallest usual size.
#pragma once

#include "jinja/caps.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"
#include "template-bounds.h"

#include <functional>
#include <string>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace template_run {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 8 * 1024 * 1024; // Frames are several times as large.
#else
constexpr size_t STACK_BYTES = 512 * 1024; // A thread has so little on macOS.
#endif

// Runs a function on a thread with that stack.
inline void on_small_stack(const std::function<void()> & run) {
#ifdef _WIN32
    run();
#else
    pthread_t      thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    const auto start = [](void * run) -> void * {
        (*static_cast<const std::function<void()> *>(run))();
        return nullptr;
    };
    if (pthread_create(&thread, &attributes, start, const_cast<std::function<void()> *>(&run)) == 0) {
        pthread_join(thread, nullptr);
    }
    pthread_attr_destroy(&attributes);
#endif
}

inline std::string render(const jinja::program & program, const std::string & source, size_t n_messages) {
    common_json messages = common_json::array();
    for (size_t i = 0; i < n_messages; i++) {
        messages.push_back(common_json{ { "role", i % 2 == 0 ? "user" : "assistant" }, { "content", "message " + std::to_string(i) } });
    }
    jinja::context context(source);
    jinja::global_from_json(context, common_json{ { "messages", messages }, { "eos_token", "</s>" }, { "add_generation_prompt", true } },
                            true);
    const jinja::value results = jinja::runtime(context).execute(program);
    return jinja::runtime::gather_string_parts(results)->as_string().str();
}

// Does with a template what common_chat_templates_init and common_chat_templates_apply do. Returns its prompt, or the error.
inline std::string prompt_of(const std::string & source, size_t n_messages = 1, const dqrelo_template_bounds & bounds = {}) {
    std::string prompt;
    on_small_stack([&] {
        try {
            dqrelo_template_scope scope({ n_messages * 10, n_messages }, bounds);
            try {
                auto program = jinja::parse_from_tokens(jinja::lexer().tokenize(source));
                jinja::caps_get(program);
                prompt = render(program, source, n_messages);
                scope.prompt(prompt.size());
            } catch (const std::exception &) {
                scope.check();
                throw;
            }
            scope.check();
        } catch (const std::exception & e) {
            prompt = std::string("error: ") + e.what();
        }
    });
    return prompt;
}

} // namespace template_run
