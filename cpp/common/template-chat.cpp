#include "template-chat.h"

#include "chat.h"
#include "file/error-text.h"
#include "file/message.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"

#include <algorithm>

static const size_t N_ERROR_MAX = 4096; // bytes; a template may raise an exception of any length

static dqrelo_template_request request_of(const common_chat_templates_inputs & inputs) {
    dqrelo_template_request request;
    request.n_messages = inputs.messages.size();
    request.n_bytes    = inputs.json_schema.size() + inputs.grammar.size();
    for (const auto & message : inputs.messages) {
        request.n_bytes += message.content.size() + message.reasoning_content.size();
        for (const auto & part : message.content_parts) {
            request.n_bytes += part.text.size();
        }
        for (const auto & call : message.tool_calls) {
            request.n_bytes += call.name.size() + call.arguments.size();
        }
    }
    for (const auto & tool : inputs.tools) {
        request.n_bytes += tool.name.size() + tool.description.size() + tool.parameters.size();
    }
    for (const auto & [name, value] : inputs.chat_template_kwargs) {
        request.n_bytes += name.size() + value.size();
    }
    return request;
}

common_chat_params dqrelo_template_apply(const common_chat_templates_inputs & inputs, const std::function<common_chat_params()> & apply) {
    dqrelo_template_scope scope(request_of(inputs));
    try {
        auto params = apply();
        scope.prompt(params.prompt.size());
        for (const auto & trigger : params.grammar_triggers) {
            scope.marker(trigger.value.size());
        }
        scope.check();
        return params;
    } catch (const std::exception & e) {
        scope.check();
        const std::string text = e.what();
        if (text.size() <= N_ERROR_MAX) {
            throw;
        }
        throw std::invalid_argument(text.substr(0, N_ERROR_MAX) + "...");
    }
}

void dqrelo_template_parse(const std::string & source) {
    dqrelo_template_scope scope;
    jinja::parse_from_tokens(jinja::lexer().tokenize(source));
}

bool dqrelo_template_check(const llama_model * model, const std::string & source, std::string & err) {
    try {
        dqrelo_template_parse(source);
        const auto templates = common_chat_templates_init(model, source);
        common_chat_templates_support_enable_thinking(templates.get());
        return true;
    } catch (const std::exception & e) {
        err = dqrelo_template_error_text(e);
        return false;
    }
}

// The engine's errors show the place in several lines of source: of those only "line 1, column 4" and the reason are kept.
std::string dqrelo_template_error_text(const std::exception & error) {
    constexpr size_t N_MAX = 300; // bytes of the reason

    const std::string text = dqrelo::exception_text(error);
    if (dynamic_cast<const dqrelo_template_error *>(&error) != nullptr) {
        return text;
    }
    // Upstream's text has the form: While executing NODE at line 1, column 4 in source: ... Error: REASON.
    const size_t place  = text.find("While executing ");
    const size_t reason = text.find("\nError: ");
    std::string  line   = "chat template: ";
    const size_t at     = text.find(" at ", std::min(place, text.size()));
    const size_t end    = text.find(" in source:", std::min(at, text.size()));
    if (end != std::string::npos && reason != std::string::npos) {
        line += text.substr(at + 4, end - at - 4) + ": " + text.substr(reason + 8, N_MAX);
    } else {
        line += text.substr(0, std::min(N_MAX, text.find("\n...")));
    }
    std::replace(line.begin(), line.end(), '\n', ' '); // What the template says in several lines reads as one.
    return dqrelo::printable(line, 2 * N_MAX);
}
