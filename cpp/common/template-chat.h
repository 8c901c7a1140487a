// template-chat.h: upstream's chat functions within the bounds on templates, and their errors in one line.
#pragma once

#include "template-bounds.h"

#include <functional>
#include <string>

struct common_chat_params;
struct common_chat_templates_inputs;
struct llama_model;

// Makes the prompt of a request with `apply`, within the bounds that its messages give. Throws dqrelo_template_error, also where the
// prompt, or what marks tool calls in the answer, is longer than what llama.cpp can be given.
common_chat_params dqrelo_template_apply(const common_chat_templates_inputs & inputs, const std::function<common_chat_params()> & apply);

// Parses a template and throws what is wrong with it, where upstream's common_chat_templates_init logs three lines too.
void dqrelo_template_parse(const std::string & source);

// Returns whether a template can be parsed and makes a prompt of one message. False with one line in `err`.
bool dqrelo_template_check(const llama_model * model, const std::string & source, std::string & err);

// Returns what a template threw, in one line.
std::string dqrelo_template_error_text(const std::exception & error);
