// delta.h: a loaded delta, what dqrelo.h calls struct dqrelo_delta.
#pragma once

#include "memory/composed-pack.h"
#include "file/delta-file.h"
#include "memory/device-pack.h"
#include "memory/placement.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

struct llama_model;

struct dqrelo_delta {
    // A weight of the delta where a tensor of the model needs it. A tied matrix may be needed in two places.
    struct weight_copy {
        size_t                     weight; // index in the file
        dqrelo::method             how;
        ggml_backend_buffer_type_t buft;
    };

    // Operator entry of one of `copies` that is not composed.
    dqrelo_entry entry(const weight_copy & copy) const {
        return copy.how == dqrelo::method::mapped ? file->entry(copy.weight) : packs.at(copy.buft)->entry(copy.weight);
    }

    std::shared_ptr<dqrelo::delta_file> file;
    const llama_model *                 model = nullptr;

    std::vector<weight_copy>                                                     copies;
    std::map<ggml_backend_buffer_type_t, std::unique_ptr<dqrelo::device_pack>>   packs;    // in the memory of devices
    std::map<ggml_backend_buffer_type_t, std::unique_ptr<dqrelo::composed_pack>> composed; // the same for devices without the operator

    std::vector<std::pair<std::string, size_t>> memory; // names of memories, and the bytes in each

    float max_scale = 0.0f; // of a binding

    bool same_base_file = false; // false: the model is another quantisation of the delta's base

    std::atomic<int32_t> n_bound{ 0 }; // bindings over all contexts

    std::vector<int32_t>               eog;  // end-of-generation tokens; empty: the vocabulary's
    std::map<std::string, std::string> meta; // scalars of the metadata as text

    // weights that no graph of the last checked context reads; guarded by the mutex
    std::mutex               mutex;
    std::vector<std::string> inert;
};
