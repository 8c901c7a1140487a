#include "machine.h"

#include "cpu/isa.h"
#include "ggml-backend.h"

namespace {

void join(std::string & text, const char * separator, const char * item) {
    text += text.empty() ? "" : separator;
    text += item;
}

std::string cpu_features() {
    std::string              text;
    const ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (dev == nullptr) {
        return text;
    }
    const ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
    const auto get_features      = (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features");
    if (get_features != nullptr) {
        for (const ggml_backend_feature * feature = get_features(reg); feature->name != nullptr; ++feature) {
            join(text, " ", feature->name);
        }
    }
    return text;
}

} // namespace

machine_info read_machine_info() {
    machine_info info;
    info.build_commit = DQRELO_BUILD_COMMIT;
    info.build_number = DQRELO_BUILD_NUMBER;
    info.isa          = dqrelo_isa_name(dqrelo_isa_chosen());
    info.features     = cpu_features();
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t               dev    = ggml_backend_dev_get(i);
        const enum ggml_backend_dev_type type   = ggml_backend_dev_type(dev);
        const bool                       is_gpu = type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
        join(is_gpu ? info.gpus : info.cpus, ", ", ggml_backend_dev_description(dev));
    }
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        const std::string name = ggml_backend_reg_name(ggml_backend_reg_get(i));
        if (name != "CPU") {
            join(info.backends, ",", name.c_str());
        }
    }
    if (info.backends.empty()) {
        info.backends = "CPU";
    }
    return info;
}
