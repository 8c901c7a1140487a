#include "memory/placement.h"

#include "dqrelo-op.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace dqrelo {

namespace {

// Asks the device about a small op whose table lies in its memory, as that of a delta does.
bool ask_for_operator(ggml_backend_dev_t dev) {
    const size_t     n_tensors = 8;
    ggml_context_ptr ctx(ggml_init({ n_tensors * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true }));
    ggml_tensor *    table = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, sizeof(dqrelo_entry));

    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(dev)));
    if (!buffer) {
        return false;
    }
    const int32_t stride[3] = { 0, 0, 0 };
    ggml_tensor * x         = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 256, 1);
    ggml_tensor * y         = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 256, 1);
    ggml_tensor * tokens    = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 2, 1);
    return ggml_backend_dev_supports_op(dev, ggml_dqrelo(ctx.get(), DQRELO_FORM_MATMUL, y, x, nullptr, table, tokens, stride));
}

bool has_operator(ggml_backend_dev_t dev) {
    static std::mutex                         mutex;
    static std::map<ggml_backend_dev_t, bool> known;
    const std::lock_guard<std::mutex>         lock(mutex);
    const auto                                it = known.find(dev);
    return it != known.end() ? it->second : known[dev] = ask_for_operator(dev);
}

// Memory from which a delta cannot be read, whatever its device can compute; or nullptr.
const char * problem_of(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) {
        return "where each matrix is split over several devices (-sm tensor); use -sm layer";
    }
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
    if (reg && strcmp(ggml_backend_reg_name(reg), "RPC") == 0) {
        return "on another machine, which holds no deltas; run without --rpc, or with -ngl 0";
    }
    if (strstr(ggml_backend_buft_name(buft), "_Split")) {
        return "where each matrix is split over several devices (-sm row); use -sm layer";
    }
    return nullptr;
}

} // namespace

bool all_composed() {
    static const bool on = [] {
        const char * value = getenv("DQRELO_COMPOSED");
        return value && strcmp(value, "1") == 0;
    }();
    return on;
}

placement placement_of(const ggml_tensor * weight) {
    placement result;
    result.how  = all_composed() ? method::composed : method::mapped;
    result.buft = ggml_backend_cpu_buffer_type();
    if (!weight->buffer) {
        return result;
    }
    const ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(weight->buffer);
    const ggml_backend_dev_t         dev  = ggml_backend_buft_get_device(buft);
    if (!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU || ggml_backend_buft_is_host(buft)) {
        return result;
    }
    if (const char * problem = problem_of(dev, buft)) {
        result.problem = std::string("lies on ") + ggml_backend_buft_name(buft) + ", " + problem;
        return result;
    }
    result.how  = all_composed() || !has_operator(dev) ? method::composed : method::fused;
    result.buft = ggml_backend_dev_buffer_type(dev);
    return result;
}

ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft) {
    const ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    return dev ? dev : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

} // namespace dqrelo
