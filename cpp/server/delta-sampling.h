// delta-sampling.h: the sampling defaults that a fine-tune's file may have (general.sampling.*).
#pragma once

#include "common.h"

#include <string>

struct dqrelo_delta;

// Puts them into `sampling`; what the command line set stays. False with one line in `err` (without the file's name) where a value is none
// that the sampler can have.
bool server_delta_read_sampling(const dqrelo_delta * delta, common_params_sampling & sampling, std::string & err);
