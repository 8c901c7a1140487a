#include "delta-sampling.h"

#include "dqrelo.h"
#include "sampling.h"

#include <cstdlib>

using bit = common_params_sampling_config;

namespace {

// A number under the key that llama.cpp reads from a model. The file's reader has checked its type and value.
struct number {
    const char * key;
    uint64_t     user_bit; // Set where the command line has a value.
    int32_t common_params_sampling::* integer = nullptr;
    float common_params_sampling::* real      = nullptr;
};

const number NUMBERS[] = {
    { "top_k", bit::COMMON_PARAMS_SAMPLING_CONFIG_TOP_K, &common_params_sampling::top_k },
    { "top_p", bit::COMMON_PARAMS_SAMPLING_CONFIG_TOP_P, nullptr, &common_params_sampling::top_p },
    { "min_p", bit::COMMON_PARAMS_SAMPLING_CONFIG_MIN_P, nullptr, &common_params_sampling::min_p },
    { "xtc_probability", bit::COMMON_PARAMS_SAMPLING_CONFIG_XTC_PROBABILITY, nullptr, &common_params_sampling::xtc_probability },
    { "xtc_threshold", bit::COMMON_PARAMS_SAMPLING_CONFIG_XTC_THRESHOLD, nullptr, &common_params_sampling::xtc_threshold },
    { "temp", bit::COMMON_PARAMS_SAMPLING_CONFIG_TEMP, nullptr, &common_params_sampling::temp },
    { "penalty_last_n", bit::COMMON_PARAMS_SAMPLING_CONFIG_PENALTY_LAST_N, &common_params_sampling::penalty_last_n },
    { "penalty_repeat", bit::COMMON_PARAMS_SAMPLING_CONFIG_PENALTY_REPEAT, nullptr, &common_params_sampling::penalty_repeat },
    { "mirostat", bit::COMMON_PARAMS_SAMPLING_CONFIG_MIROSTAT, &common_params_sampling::mirostat },
    { "mirostat_tau", bit::COMMON_PARAMS_SAMPLING_CONFIG_MIROSTAT_TAU, nullptr, &common_params_sampling::mirostat_tau },
    { "mirostat_eta", bit::COMMON_PARAMS_SAMPLING_CONFIG_MIROSTAT_ETA, nullptr, &common_params_sampling::mirostat_eta },
};

const char * value_of(const dqrelo_delta * delta, const char * key) {
    return dqrelo_meta_str(delta, (std::string("general.sampling.") + key).c_str());
}

} // namespace

void server_delta_read_sampling(const dqrelo_delta * delta, common_params_sampling & sampling) {
    for (const number & n : NUMBERS) {
        const char * text = value_of(delta, n.key);
        if (text == nullptr || (sampling.user_sampling_config & n.user_bit)) {
            continue;
        }
        const double value = std::strtod(text, nullptr);
        if (n.integer != nullptr) {
            sampling.*n.integer = (int32_t) value;
        } else {
            sampling.*n.real = (float) value;
        }
    }
    const char * names = value_of(delta, "sequence");
    if (names != nullptr && !(sampling.user_sampling_config & bit::COMMON_PARAMS_SAMPLING_CONFIG_SAMPLERS)) {
        sampling.samplers = common_sampler_types_from_names(string_split<std::string>(names, ';'));
    }
}
