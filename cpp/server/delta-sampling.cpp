#include "delta-sampling.h"

#include "dqrelo.h"
#include "sampling.h"

#include <cstdlib>

using bit = common_params_sampling_config;

static const size_t N_SAMPLERS_MAX = 32; // llama.cpp has eleven; each of the list is made for every request.

namespace {

// A number under the key that llama.cpp reads from a model, with the values that it may have: finite ones with a meaning, and no more
// tokens of the past than a request can give memory for.
struct number {
    const char * key;
    double       min;
    double       max;
    uint64_t     user_bit; // Set where the command line has a value.
    int32_t common_params_sampling::* integer = nullptr;
    float common_params_sampling::* real      = nullptr;
};

const number NUMBERS[] = {
    { "top_k", -1, 1e9, bit::COMMON_PARAMS_SAMPLING_CONFIG_TOP_K, &common_params_sampling::top_k },
    { "top_p", 0, 1, bit::COMMON_PARAMS_SAMPLING_CONFIG_TOP_P, nullptr, &common_params_sampling::top_p },
    { "min_p", 0, 1, bit::COMMON_PARAMS_SAMPLING_CONFIG_MIN_P, nullptr, &common_params_sampling::min_p },
    { "xtc_probability", 0, 1, bit::COMMON_PARAMS_SAMPLING_CONFIG_XTC_PROBABILITY, nullptr, &common_params_sampling::xtc_probability },
    { "xtc_threshold", 0, 1, bit::COMMON_PARAMS_SAMPLING_CONFIG_XTC_THRESHOLD, nullptr, &common_params_sampling::xtc_threshold },
    { "temp", -1, 1000, bit::COMMON_PARAMS_SAMPLING_CONFIG_TEMP, nullptr, &common_params_sampling::temp },
    { "penalty_last_n", -1, 1 << 20, bit::COMMON_PARAMS_SAMPLING_CONFIG_PENALTY_LAST_N, &common_params_sampling::penalty_last_n },
    { "penalty_repeat", 0.001, 1000, bit::COMMON_PARAMS_SAMPLING_CONFIG_PENALTY_REPEAT, nullptr, &common_params_sampling::penalty_repeat },
    { "mirostat", 0, 2, bit::COMMON_PARAMS_SAMPLING_CONFIG_MIROSTAT, &common_params_sampling::mirostat },
    { "mirostat_tau", 0, 1000, bit::COMMON_PARAMS_SAMPLING_CONFIG_MIROSTAT_TAU, nullptr, &common_params_sampling::mirostat_tau },
    { "mirostat_eta", 0, 1000, bit::COMMON_PARAMS_SAMPLING_CONFIG_MIROSTAT_ETA, nullptr, &common_params_sampling::mirostat_eta },
};

const char * value_of(const dqrelo_delta * delta, const char * key) {
    return dqrelo_meta_str(delta, (std::string("general.sampling.") + key).c_str());
}

bool read_sequence(const dqrelo_delta * delta, common_params_sampling & sampling, std::string & err) {
    const char * text = value_of(delta, "sequence");
    if (text == nullptr) {
        return true;
    }
    const auto names = string_split<std::string>(text, ';');
    if (names.size() > N_SAMPLERS_MAX) {
        err =
            string_format("metadata key 'general.sampling.sequence' has %zu samplers, expected at most %zu", names.size(), N_SAMPLERS_MAX);
        return false;
    }
    if (!(sampling.user_sampling_config & bit::COMMON_PARAMS_SAMPLING_CONFIG_SAMPLERS)) {
        sampling.samplers = common_sampler_types_from_names(names);
    }
    return true;
}

} // namespace

bool server_delta_read_sampling(const dqrelo_delta * delta, common_params_sampling & sampling, std::string & err) {
    for (const number & n : NUMBERS) {
        const char * text = value_of(delta, n.key);
        if (text == nullptr) {
            continue;
        }
        char *       end       = nullptr;
        const double value     = std::strtod(text, &end);
        const bool   is_number = end != text && *end == '\0';
        if (!is_number || !(value >= n.min && value <= n.max)) {
            err = string_format("metadata key 'general.sampling.%s' is %s, expected a number from %g to %g", n.key,
                                is_number ? string_format("%g", value).c_str() : "none", n.min, n.max);
            return false;
        }
        if (sampling.user_sampling_config & n.user_bit) {
            continue;
        }
        if (n.integer != nullptr) {
            sampling.*n.integer = (int32_t) value;
        } else {
            sampling.*n.real = (float) value;
        }
    }
    return read_sequence(delta, sampling, err);
}
