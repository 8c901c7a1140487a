// delta-routes.h: the HTTP endpoints of deltas: /deltas, and those under which vLLM loads its adapters.
#pragma once

#include "server-http.h"

class server_delta_set;
struct server_delta_error;

using server_delta_wrapper = server_http_context::handler_t (*)(server_http_context::handler_t);

// `get_models` answers /v1/models and /v1/models/NAME; `wrap` turns what a handler throws into an answer.
void server_delta_add_routes(const server_http_context & http, server_delta_set & deltas, const server_http_context::handler_t & get_models,
                             server_delta_wrapper wrap);

// The same endpoints of a router, which has no deltas and says so; in its log, too, where `params` asks for some.
void server_delta_add_router_routes(const server_http_context & http, const common_params & params, server_delta_wrapper wrap);

// Returns the answer to a request that a delta cannot serve.
server_http_res_ptr server_delta_answer(const server_delta_error & e);
