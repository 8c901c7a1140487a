// delta-options.h: what the command line says about deltas. A field of common_params; included by upstream's common.h, so it stays small.
#pragma once

#include <string>
#include <vector>

// One --delta [NAME=]PATH.
struct dqrelo_delta_source {
    std::string name;  // what requests call it
    std::string path;
};

struct dqrelo_options {
    std::vector<dqrelo_delta_source> deltas;
    bool                             unknown_is_base  = false;  // --delta-unknown base: a request for a name that nobody has gets the base
    bool                             verify           = false;  // --delta-verify: check every digest at load
    bool                             allow_other_base = false;  // --delta-allow-other-base: accept another quantisation of the delta's base
    bool                             one_for_all      = false;  // set by programs without names: the only delta serves every sequence
};
