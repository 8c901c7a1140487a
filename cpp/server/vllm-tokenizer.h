// vllm-tokenizer.h: the tokenizer over HTTP as vLLM has it: GET /tokenizer_info, and vLLM's bodies at /tokenize and /detokenize, where
// llama.cpp's go on working.
#pragma once

#include "server-http.h"

struct server_routes;

// `wrap` turns what a handler throws into an answer. Comes before the routes are registered: it puts handlers around two of them.
void server_vllm_tokenizer(const server_http_context & http, server_routes & routes,
                           server_http_context::handler_t (*wrap)(server_http_context::handler_t));
