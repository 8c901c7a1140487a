// delta.h: a loaded delta, what dqrelo.h calls struct dqrelo_delta.
#pragma once

#include "delta-file.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct llama_model;

struct dqrelo_delta {
    std::unique_ptr<dqrelo::delta_file> file;
    const llama_model *                 model = nullptr;

    bool same_base_file = false; // false: the model is another quantisation of the delta's base

    std::atomic<int32_t> n_bound{ 0 }; // bindings over all contexts

    std::vector<int32_t>               eog;  // end-of-generation tokens; empty: the vocabulary's
    std::map<std::string, std::string> meta; // scalars of the metadata as text

    // weights that no graph of the last checked context reads; guarded by the mutex
    std::mutex               mutex;
    std::vector<std::string> inert;
};
