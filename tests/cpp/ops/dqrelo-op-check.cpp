// dqrelo-op-check.cpp: the operator of a device against F64, with the cases of the tests of every implementation.
//
//   dqrelo-op-check            all GPUs
//   dqrelo-op-check NAME...    devices by the names that llama-server --list-devices gives, or CPU
//
// A device without the operator is named and passes: there deltas run as ordinary ggml ops. Exit code 1: results are wrong, or there is no
// device to check.

#include "support/check.h"
#include "support/fold-cases.h"
#include "support/op-cases.h"
#include "support/op-device.h"

#include <cstring>

static device_op * device; // The current round uses it.
static int         n_cases;
static int         n_missing; // It counts the cases for which the device has no operator.

static void check_case(const std::string & name, op_case & c) {
    c.fill(31);
    n_cases++;
    if (!device->supports(c)) {
        n_missing++;
        return;
    }
    device->run(c);
    if (!matches(c)) {
        printf("  in case %s\n", name.c_str());
        check::n_failed++;
    }
}

static bool is_gpu(ggml_backend_dev_t dev) {
    const auto type = ggml_backend_dev_type(dev);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

// Prompts of the op that computes the base's product, too, which a GPU rounds to F16 (ggml_ops/cuda/fold.cu). They are a part of the check
// whether they are used or not.
static void check_folds(bool rounds) {
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        for (int64_t n_in : { 64, 200, 1000 }) {
            const kinds k(n_in, 150);
            fold_case   f(type, n_in, 150);
            f.c.entries = k.all();
            f.rounding  = rounds ? 3.0 / 2048 : 0.0;
            f.set_tokens(mixed());
            n_cases++;
            device->run(f);
            if (!f.matches()) {
                printf("  in case fold/%s/n_in=%d\n", ggml_type_name(type), (int) n_in);
                check::n_failed++;
            }
        }
    }
}

static void check_device(ggml_backend_dev_t dev) {
    device_op op(dev);
    device           = &op;
    n_cases          = 0;
    n_missing        = 0;
    const int before = check::n_failed;
    test_all_cases();
    if (n_missing == 0) {
        check_folds(is_gpu(dev));
    }
    const int n_wrong = check::n_failed - before;
    printf("%s (%s): ", ggml_backend_dev_name(dev), ggml_backend_dev_description(dev));
    if (n_missing == n_cases) {
        printf("has no operator; deltas run as ordinary ggml ops\n");
    } else {
        printf("%d of %d cases agree%s\n", n_cases - n_missing - n_wrong, n_cases,
               n_missing > 0 ? ", for the others it has no operator" : "");
    }
}

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    std::vector<ggml_backend_dev_t> devices;
    for (int i = 1; i < argc; i++) {
        devices.push_back(ggml_backend_dev_by_name(argv[i]));
        if (!devices.back()) {
            fprintf(stderr, "dqrelo-op-check: no device %s; llama-server --list-devices names them\n", argv[i]);
            return 1;
        }
    }
    for (size_t i = 0; argc == 1 && i < ggml_backend_dev_count(); i++) {
        if (is_gpu(ggml_backend_dev_get(i))) {
            devices.push_back(ggml_backend_dev_get(i));
        }
    }
    if (devices.empty()) {
        fprintf(stderr, "dqrelo-op-check: this build finds no GPU: it needs one that is built in (-DDQRELO_CUDA=ON), its driver, and a "
                        "device that is visible\n");
        return 1;
    }
    for (ggml_backend_dev_t dev : devices) {
        check_device(dev);
    }
    return check::n_failed == 0 ? 0 : 1;
}
