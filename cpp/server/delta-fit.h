// delta-fit.h: deltas in the memory that --fit plans with.
#pragma once

struct common_params;

// Raises what --fit leaves free by what the deltas of `params` may take together. Only where it plans with the memory in which they lie:
// without a GPU.
void server_delta_make_fit(common_params & params);
