// Answers that are NaN or infinite: found after each batch, before anything is made of them.
#include "delta-set.h"

#include <algorithm>

std::string server_delta_set::check_finite(const server_delta_ref & ref, llama_context * ctx, int id_slot,
                                           const std::vector<int32_t> & rows, int32_t first, int32_t n) const {
    if (!registry) {
        return "";
    }
    const auto is_good = [&](int32_t row) { return row < first || row >= first + n || dqrelo_is_finite(ctx, id_slot, row - first); };
    if (dqrelo_is_finite(ctx, id_slot, -1) && std::all_of(rows.begin(), rows.end(), is_good)) {
        return "";
    }
    const std::string what = "the answer is not a number: NaN or infinity in what the model computed. ";
    if (ref.key().empty()) {
        return what + "Is the model's file damaged, or does a LoRA or a control vector not fit?";
    }
    if (ref.scales.size() > 1) {
        return "blend '" + ref.name + "': " + what + "The weights of its deltas, multiplied by their scales, are too large for this model";
    }
    return "delta '" + ref.name + "': " + what +
           string_format("Its weights, multiplied by \"delta_scale\" %g, are too large for this model", ref.scales[0]);
}
