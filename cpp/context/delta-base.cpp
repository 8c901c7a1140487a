#include "context/delta-base.h"

#include "context/delta-placement.h"
#include "file/fingerprint.h"

#include "llama-model.h"

#include <algorithm>

namespace dqrelo {

bool check_base(dqrelo_delta & delta, const base_file & base, bool allow_other_bytes, std::string & err) {
    if (!check_shapes(*delta.file, base, err)) { // This comes first, because another architecture has the clearer line.
        return false;
    }
    const auto cmp       = compare(*delta.file, base);
    delta.same_base_file = cmp.match == base_match::same_file;
    if (cmp.match == base_match::other_model) {
        err = cmp.reason;
    } else if (cmp.match == base_match::same_model && !allow_other_bytes) {
        err = cmp.reason + ". Another quantisation of the base can be allowed (--delta-allow-other-base, allow_other_base=True)";
    }
    return err.empty();
}

bool check_loaded_shapes(const llama_model & model, const delta_file & file, std::string & err) {
    const tensors_by_name tensors = tensors_of(model);
    for (const auto & w : file.weights()) {
        const auto found = tensors.find(w.name);
        if (found == tensors.end()) {
            // The weight is not loaded for this model (for instance a skipped prediction layer), and dqrelo_check lists it as inert.
            continue;
        }
        const ggml_tensor * t = found->second.front();
        for (int d = 0; d < 4; d++) {
            if (t->ne[d] != w.ne[d]) {
                err = file.path() + ": tensor '" + w.name + "': the loaded model has another shape than the delta's base (ne[" +
                      std::to_string(d) + "] is " + std::to_string(t->ne[d]) + ", expected " + std::to_string(w.ne[d]) +
                      "). Is this the base that the delta was made from?";
                return false;
            }
        }
    }
    return true;
}

} // namespace dqrelo
