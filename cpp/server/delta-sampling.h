// delta-sampling.h: the sampling defaults that a fine-tune's file may have (general.sampling.*).
#pragma once

#include "common.h"

struct dqrelo_delta;

// Puts them into `sampling`; what the command line set stays.
void server_delta_read_sampling(const dqrelo_delta * delta, common_params_sampling & sampling);
