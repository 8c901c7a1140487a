#include "dqrelo.h"

#include "llama-model.h"

#include <vector>

static bool is_plain(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

bool dqrelo_set_weight(llama_model * model, const char * name, const float * values, size_t n) {
    bool is_set = false;
    for (const auto & [own_name, tensor] : model->tensors_by_name) { // A tied matrix may be in memory twice.
        if (own_name != name || (size_t) ggml_nelements(tensor) != n || !is_plain(tensor->type)) {
            continue;
        }
        std::vector<char> bytes(ggml_nbytes(tensor));
        ggml_quantize_chunk(tensor->type, values, bytes.data(), 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
        ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
        is_set = true;
    }
    return is_set;
}
