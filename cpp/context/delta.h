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

    std::vector<weight_copy> copies;
    // Copies for the operator, in the memory of devices.
    std::map<ggml_backend_buffer_type_t, std::unique_ptr<dqrelo::device_pack>> packs;
    // Copies for devices without the operator.
    std::map<ggml_backend_buffer_type_t, std::unique_ptr<dqrelo::composed_pack>> composed;

    std::vector<std::pair<std::string, size_t>> memory; // Holds the name of each memory, and the bytes in it.

    float max_scale = 0.0f; // A binding may have no larger request scale.

    bool same_base_file = false; // False means that the model is another quantisation of the delta's base.

    std::atomic<int32_t> n_bound{ 0 }; // Counts the bindings over all contexts.

    std::vector<int32_t>               eog;  // Holds the end-of-generation tokens; empty means the vocabulary's.
    std::map<std::string, std::string> meta; // Holds the scalars of the metadata as text.

    // Names the weights that no graph of the last checked context reads. The mutex guards it.
    std::mutex               mutex;
    std::vector<std::string> inert;
};
