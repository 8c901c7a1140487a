// delta-args.h: the command-line options of deltas.
#pragma once

#include "delta-options.h"

#include <functional>

struct common_arg;

// Hands every option of ours to upstream's parser (which drops those that are not for its program).
void dqrelo_add_args(const std::function<void(common_arg)> & add);

// Adds one "[NAME=]PATH" (or several, separated by commas as upstream does; "quotes" keep a comma) to `options`.
// Throws std::invalid_argument on an empty or doubled name.
void dqrelo_add_deltas(dqrelo_options & options, const std::string & value);
