// logprobs-request.h: the fields of a request that ask for log probabilities and token ids.
#pragma once

#include "server-task.h"

// Reads what a request's `data` asks for and gives it to its tasks, one a prompt. Throws std::invalid_argument for what makes no sense.
void server_logprobs_apply(const json & data, task_response_type type, std::vector<server_task> & tasks);

// Returns whether the tokens of a prompt get the special ones around them ("add_special_tokens", default true). Throws as above.
bool server_logprobs_add_special(const json & data, task_response_type type);
