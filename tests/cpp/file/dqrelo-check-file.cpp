// check-file.cpp: what the C++ reader finds in a delta file, as key=value lines that the Python tests compare with their own reader.
//
//   dqrelo-check-file DELTA [BASE]     opens and verifies the delta, compares it with a base
//   dqrelo-check-file --base BASE      identity of a base
//
// Exit status: 0 good, 1 refused (one line on stderr), 2 usage.
#include "cpu/stack.h"
#include "file/delta-file.h"
#include "file/fingerprint.h"
#include "ggml.h"

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>

using namespace dqrelo;

static int refuse(const std::string & err) {
    fprintf(stderr, "dqrelo-check-file: error: %s\n", err.c_str());
    return 1;
}

// Row r of a matrix whose rows have n elements of a ggml type.
static std::vector<float> row_of(const void * data, int32_t type, int64_t r, int64_t n) {
    std::vector<float> out((size_t) n);
    const uint8_t *    row = (const uint8_t *) data + (size_t) r * ggml_row_size((ggml_type) type, n);
    if (type == GGML_TYPE_F32) {
        memcpy(out.data(), row, (size_t) n * sizeof(float));
    } else {
        ggml_get_type_traits((ggml_type) type)->to_float(row, out.data(), n);
    }
    return out;
}

// Row i of A B of one matrix's sign factors: docs/format.md, section 1.
static std::vector<double> sign_factor_row(const dqrelo_entry & entry, int64_t i) {
    const auto sign = [](const uint8_t * row, int64_t j) { return row[j / 8] >> (j % 8) & 1 ? 1.0 : -1.0; };

    const std::vector<float> vscale = row_of(entry.vscale, GGML_TYPE_BF16, 0, entry.n_codes);
    const std::vector<float> uscale = row_of(entry.uscale, GGML_TYPE_BF16, 0, entry.n_codes);
    const uint8_t *          u      = entry.usign + i * (entry.n_codes / 8);
    std::vector<double>      out((size_t) entry.n_in, 0.0);
    for (int32_t k = 0; k < entry.plane_ranks[0]; ++k) {
        double              a = 0.0;
        std::vector<double> b((size_t) entry.n_in, 0.0);
        int64_t             code = k;
        for (int q = 0; q < DQRELO_MAX_CODE_PLANES && k < entry.plane_ranks[q]; code += entry.plane_ranks[q++]) {
            a += (double) uscale[(size_t) code] * sign(u, code);
            for (int64_t j = 0; j < entry.n_in; ++j) {
                b[(size_t) j] += (double) vscale[(size_t) code] * sign(entry.vsign + code * (entry.n_in / 8), j);
            }
        }
        for (size_t j = 0; j < b.size(); ++j) {
            out[j] += a * b[j];
        }
    }
    return out;
}

// Row i of one matrix of a sparse weight.
static std::vector<double> sparse_row(const dqrelo_entry & entry, int64_t i) {
    const int64_t       n_blocks = (entry.n_in + 255) / 256;
    int64_t             at       = entry.start[i];
    std::vector<double> out((size_t) entry.n_in, 0.0);
    const auto          put = [&](int64_t j) {
        const uint16_t bits = entry.type_entries == GGML_TYPE_I8 ? (uint16_t) (((const uint8_t *) entry.entries)[at] << 8)
                                                                 : ((const uint16_t *) entry.entries)[at];
        ggml_bf16_t    bf16;
        bf16.bits          = bits;
        const double value = entry.type_entries == GGML_TYPE_BF16 ? ggml_bf16_to_fp32(bf16) : ggml_fp16_to_fp32(bits);
        out[(size_t) j]    = value * (entry.escale ? entry.escale[i] : 1.0);
        at++;
    };
    for (int64_t j = 0; entry.mask && j < entry.n_in; ++j) {
        if (entry.mask[i * (entry.n_in / 8) + j / 8] >> (j % 8) & 1) {
            put(j);
        }
    }
    for (int64_t b = 0; entry.count && b < n_blocks; ++b) {
        for (int k = 0; k < entry.count[i * n_blocks + b]; ++k) {
            put(256 * b + entry.column[at]);
        }
    }
    return out;
}

// Row i of D_hat of one matrix: docs/format.md, section 1.
static std::vector<double> delta_row(const dqrelo_entry & entry, int64_t i) {
    if (entry.entries) {
        return sparse_row(entry, i);
    }
    if (entry.dense) {
        const std::vector<float> row = row_of(entry.dense, entry.type_dense, i, entry.n_in);
        return { row.begin(), row.end() };
    }
    std::vector<double> out = sign_factor_row(entry, i);
    for (int64_t j = 0; j < entry.n_in; ++j) {
        out[j] *= entry.cscale ? entry.cscale[j] : 1.0;
    }
    for (int32_t p = 0; p < entry.n_planes; ++p) {
        const double    scale = entry.scale[p][entry.scale_per_row >> p & 1 ? i : 0];
        const uint8_t * signs = entry.sign[p] + i * (entry.n_in / 8);
        for (int64_t j = 0; j < entry.n_in; ++j) {
            const double column = entry.cscale ? entry.cscale[j] : 1.0;
            out[j] += (signs[j / 8] >> (j % 8) & 1 ? scale : -scale) * column;
        }
    }
    if (entry.rank > 0) {
        const std::vector<float> u = row_of(entry.u, entry.type_u, i, entry.rank);
        for (int32_t k = 0; k < entry.rank; ++k) {
            const std::vector<float> v = row_of(entry.v, entry.type_v, k, entry.n_in);
            for (int64_t j = 0; j < entry.n_in; ++j) {
                out[j] += (double) u[k] * v[j];
            }
        }
    }
    return out;
}

// Sum and weighted sum of D_hat over all matrices of a weight: the second sees an exchange of rows, columns or matrices.
static void print_sums(const delta_file & delta, size_t w) {
    const weight_info & weight   = delta.weights()[w];
    double              sum      = 0.0;
    double              weighted = 0.0;
    int64_t             n        = 0;
    const dqrelo_entry  stack    = delta.entry(w);
    for (int64_t e = 0; e < stack.n_mat; ++e) {
        const dqrelo_entry entry = dqrelo_entry_matrix(&stack, e);
        for (int64_t i = 0; i < entry.n_out; ++i) {
            for (double x : delta_row(entry, i)) {
                sum += x;
                weighted += x * (double) (n++ % 1009 + 1);
            }
        }
    }
    printf("weight=%s %" PRId32 " %" PRId32 " %.9g %.9g\n", weight.name.c_str(), weight.n_planes, weight.rank, sum, weighted);
}

static void print_base(const base_file & base) {
    std::vector<float>             samples;
    std::string                    err;
    const std::vector<std::string> names = base.sample_tensors();
    base.samples(names, samples, err);
    printf("base.name=%s\nbase.architecture=%s\nbase.digest=%s\n", base.name().c_str(), base.architecture().c_str(), base.digest().c_str());
    for (size_t i = 0; i < names.size(); ++i) {
        printf("base.samples=%s", names[i].c_str());
        for (size_t t = 0; t < N_SAMPLES_PER_TENSOR; ++t) {
            printf(" %.9g", (double) samples[i * N_SAMPLES_PER_TENSOR + t]);
        }
        printf("\n");
    }
}

static void print_delta(const delta_file & delta) {
    printf("name=%s\narchitecture=%s\ncontent_hash=%s\nbase_name=%s\nbase_digest=%s\n", delta.name().c_str(), delta.architecture().c_str(),
           delta.content_hash().c_str(), delta.base_name().c_str(), delta.base_digest().c_str());
    printf("ratio=%.17g\nn_bytes=%zu\nn_weights=%zu\nn_samples=%zu\n", delta.ratio(), delta.n_bytes(), delta.weights().size(),
           delta.samples().size());
    printf("chat_template=%s\n", delta.chat_template() ? delta.chat_template()->c_str() : "(base)");
    printf("eog=");
    for (int32_t id : delta.eog_tokens()) {
        printf(" %" PRId32, id);
    }
    printf("\n");
    for (const std::string & key : delta.meta_keys()) {
        if (key != "tokenizer.chat_template") {
            printf("meta=%s %s\n", key.c_str(), delta.meta_str(key)->c_str());
        }
    }
    for (size_t i = 0; i < delta.weights().size(); ++i) {
        print_sums(delta, i);
    }
}

int main(int argc, char ** argv) {
    std::string err;
    if (argc == 3 && strcmp(argv[1], "--base") == 0) {
        const auto base = base_file::open(argv[2], err);
        if (!base) {
            return refuse(err);
        }
        print_base(*base);
        return 0;
    }
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: dqrelo-check-file DELTA [BASE] | --base BASE\n");
        return 2;
    }
    delta_file::options options;
    options.digests  = delta_file::digest_check::always;
    const auto delta = delta_file::open(argv[1], options, err);
    if (!delta) {
        return refuse(err);
    }
    print_delta(*delta);
    if (argc == 3) {
        const auto base = base_file::open(argv[2], err);
        if (!base || !check_shapes(*delta, *base, err) || (base->n_tokens() > 0 && !check_tokens(*delta, base->n_tokens(), err))) {
            return refuse(err);
        }
        const base_comparison     same    = compare(*delta, *base);
        static const char * const names[] = { "same_file", "same_model", "other_model" };
        printf("match=%s\ncorrelation=%.6f\nreason=%s\n", names[(int) same.match], same.correlation, same.reason.c_str());
    }
    return 0;
}
