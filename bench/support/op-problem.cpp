#include "op-problem.h"

#include "cpu/transposed-signs.h"

#include <cmath>

namespace bench {

namespace {

// Bytes of the deltas that take turns: three times the largest cache met so far.
constexpr size_t  N_BYTES_IN_TURN = (size_t) 96 << 20;
constexpr int64_t QK              = 32;

std::vector<float> random_floats(size_t n, float magnitude, std::mt19937 & rng) {
    std::vector<float> out(n);
    for (float & v : out) {
        v = ((float) (rng() % 2001) * 1e-3f - 1.0f) * magnitude;
    }
    return out;
}

weight_bytes quantised(ggml_type type, const std::vector<float> & values, int64_t n_cols) {
    const int64_t n_rows = (int64_t) values.size() / n_cols;
    weight_bytes  out(ggml_row_size(type, n_cols) * (size_t) n_rows);
    ggml_quantize_chunk(type, values.data(), out.data(), 0, n_rows, n_cols, nullptr);
    return out;
}

// Q1_0 has blocks of 128 signs, {F16 d, 16 bytes of bits in our order}. Here d = 1, so that the scale is applied to the sum in F32.
weight_bytes as_q1_0(const weight_bytes & sign) {
    const uint16_t one = ggml_fp32_to_fp16(1.0f);
    weight_bytes   out(sign.size() / 16 * 18);
    for (size_t b = 0; b < sign.size() / 16; b++) {
        memcpy(out.data() + b * 18, &one, sizeof(one));
        memcpy(out.data() + b * 18 + 2, sign.data() + b * 16, 16);
    }
    return out;
}

std::vector<float> as_floats(ggml_type type, const weight_bytes & data, int64_t n) {
    std::vector<float> out((size_t) n);
    ggml_get_type_traits(type)->to_float(data.data(), out.data(), n);
    return out;
}

// Returns the rank that U and V can have in an eighth of n_in x n_out weights of 16 bits, after the signs.
int64_t rank_at_an_eighth(int64_t n_in, int64_t n_out, const delta_kind & kind) {
    if (kind.n_codes() > 0 || kind.entries > 0.0) {
        return 0;
    }
    const double n_bits    = 2.0 * (double) (n_in * n_out) - kind.n_planes * (double) (n_in * n_out);
    const double per_value = 8.0 * (double) ggml_type_size(kind.factors) / (double) ggml_blck_size(kind.factors);
    int64_t      rank      = std::max<int64_t>(QK, (int64_t) (n_bits / per_value / (double) (n_in + n_out)));
    return ggml_blck_size(kind.factors) == 1 ? rank : rank / QK * QK;
}

// The rows of `rank` vectors of n values that codes stand for: B, or A as columns.
std::vector<float> decoded(const std::vector<int> & ranks, int64_t n, const weight_bytes & signs, const weight_bytes & scale,
                           bool columns) {
    int n_codes = 0;
    for (int r : ranks) {
        n_codes += r;
    }
    const std::vector<float> s    = as_floats(GGML_TYPE_BF16, scale, n_codes);
    const int64_t            rank = ranks[0];
    std::vector<float>       out((size_t) (rank * n), 0.0f);
    int64_t                  code = 0;
    for (int r : ranks) {
        for (int64_t k = 0; k < r; k++, code++) {
            for (int64_t j = 0; j < n; j++) {
                const size_t bit = (size_t) (columns ? j * n_codes + code : code * n + j);
                out[(size_t) (columns ? j * rank + k : k * n + j)] +=
                    (signs[bit / 8] >> (bit % 8)) & 1 ? s[(size_t) code] : -s[(size_t) code];
            }
        }
    }
    return out;
}

void add_sign_factors(const op_problem & p, random_delta & d, std::mt19937 & rng) {
    d.e.n_codes = p.kind.n_codes();
    std::copy(p.kind.plane_ranks.begin(), p.kind.plane_ranks.end(), d.e.plane_ranks);
    d.vsign    = random_bytes((size_t) (p.n_in * d.e.n_codes / 8), rng);
    d.usign    = random_bytes((size_t) (p.n_out * d.e.n_codes / 8), rng);
    d.vscale   = quantised(GGML_TYPE_BF16, random_floats((size_t) d.e.n_codes, 0.01f, rng), d.e.n_codes);
    d.uscale   = quantised(GGML_TYPE_BF16, random_floats((size_t) d.e.n_codes, 0.1f, rng), d.e.n_codes);
    d.e.vsign  = d.vsign.data();
    d.e.usign  = d.usign.data();
    d.e.vscale = d.vscale.data();
    d.e.uscale = d.uscale.data();
    d.a        = quantised(GGML_TYPE_Q8_0, decoded(p.kind.plane_ranks, p.n_out, d.usign, d.uscale, true), p.kind.plane_ranks[0]);
    d.b        = quantised(GGML_TYPE_Q8_0, decoded(p.kind.plane_ranks, p.n_in, d.vsign, d.vscale, false), p.n_in);
}

void add_entries(const op_problem & p, random_delta & d, std::mt19937 & rng) {
    const int64_t      n_blocks = (p.n_in + DQRELO_SPARSE_BLOCK - 1) / DQRELO_SPARSE_BLOCK;
    const uint32_t     below    = (uint32_t) (p.kind.entries * 4294967295.0);
    std::vector<float> values;
    d.mask.assign(p.kind.has_mask ? (size_t) (p.n_in / 8 * p.n_out) : 0, 0);
    d.count.assign(p.kind.has_mask ? 0 : (size_t) (n_blocks * p.n_out), 0);
    for (int64_t i = 0; i < p.n_out; i++) {
        d.start.push_back((int32_t) values.size());
        for (int64_t j = 0; j < p.n_in; j++) {
            if (rng() >= below) {
                continue;
            }
            if (p.kind.has_mask) {
                d.mask[(size_t) (i * (p.n_in / 8) + j / 8)] |= (uint8_t) (1 << (j % 8));
            } else {
                d.count[(size_t) (i * n_blocks + j / DQRELO_SPARSE_BLOCK)]++;
                d.column.push_back((uint8_t) (j % DQRELO_SPARSE_BLOCK));
            }
            values.push_back((float) (rng() % 2001) * 1e-3f - 1.0f);
        }
    }
    const bool is_f8 = p.kind.factors == GGML_TYPE_I8;
    d.entries        = quantised(is_f8 ? GGML_TYPE_F16 : p.kind.factors, values, (int64_t) values.size());
    for (size_t k = 0; is_f8 && k < values.size(); k++) {
        d.entries[k] = d.entries[2 * k + 1];
    }
    d.entries.resize(is_f8 ? values.size() : d.entries.size());
    d.escale.assign(is_f8 ? (size_t) p.n_out : 0, 0.25f);
    d.e.entries      = d.entries.data();
    d.e.type_entries = p.kind.factors;
    d.e.start        = d.start.data();
    d.e.mask         = p.kind.has_mask ? d.mask.data() : nullptr;
    d.e.count        = p.kind.has_mask ? nullptr : d.count.data();
    d.e.column       = p.kind.has_mask ? nullptr : d.column.data();
    d.e.escale       = is_f8 ? d.escale.data() : nullptr;
}

// The rows of a sparse weight, zeros included.
std::vector<float> expanded(const random_delta & d) {
    const dqrelo_entry & e     = d.e;
    const bool           is_f8 = e.type_entries == GGML_TYPE_I8;
    const size_t         n     = is_f8 ? d.entries.size() : d.entries.size() / 2;
    weight_bytes         halves(2 * n, 0);
    for (size_t k = 0; k < n; k++) {
        halves[2 * k]     = is_f8 ? 0 : d.entries[2 * k];
        halves[2 * k + 1] = is_f8 ? d.entries[k] : d.entries[2 * k + 1];
    }
    const std::vector<float> values   = as_floats(is_f8 ? GGML_TYPE_F16 : (ggml_type) e.type_entries, halves, (int64_t) n);
    const int64_t            n_blocks = (e.n_in + DQRELO_SPARSE_BLOCK - 1) / DQRELO_SPARSE_BLOCK;
    std::vector<float>       out((size_t) (e.n_in * e.n_out), 0.0f);
    size_t                   at = 0;
    const auto put = [&](int64_t i, int64_t j) { out[(size_t) (i * e.n_in + j)] = values[at++] * (is_f8 ? e.escale[i] : 1.0f); };
    for (int64_t i = 0; i < e.n_out; i++) {
        for (int64_t j = 0; e.mask && j < e.n_in; j++) {
            if (e.mask[i * (e.n_in / 8) + j / 8] >> (j % 8) & 1) {
                put(i, j);
            }
        }
        for (int64_t b = 0; e.count && b < n_blocks; b++) {
            for (int k = 0; k < e.count[i * n_blocks + b]; k++) {
                put(i, b * DQRELO_SPARSE_BLOCK + e.column[at]);
            }
        }
    }
    return out;
}

random_delta make_delta(const op_problem & p, std::mt19937 & rng) {
    random_delta d;
    d.e.n_in          = p.n_in;
    d.e.n_out         = p.n_out;
    d.e.n_mat         = 1;
    d.e.n_planes      = p.kind.n_planes;
    d.e.rank          = (int32_t) p.rank;
    d.e.type_u        = p.kind.factors;
    d.e.type_v        = p.kind.factors;
    d.e.scale_per_row = p.kind.row_scales ? (1 << p.kind.n_planes) - 1 : 0;
    d.sign.resize((size_t) p.kind.n_planes);
    d.q1_0.resize((size_t) p.kind.n_planes);
    d.scale.resize((size_t) p.kind.n_planes);
    for (int k = 0; k < p.kind.n_planes; k++) {
        d.sign[(size_t) k]  = random_bytes((size_t) (p.n_in * p.n_out / 8), rng);
        d.q1_0[(size_t) k]  = as_q1_0(d.sign[(size_t) k]);
        d.scale[(size_t) k] = std::vector<float>(p.kind.row_scales ? (size_t) p.n_out : 1, 0.001f);
        d.e.sign[k]         = d.sign[(size_t) k].data();
        d.e.scale[k]        = d.scale[(size_t) k].data();
    }
    if (p.kind.n_codes() > 0) {
        add_sign_factors(p, d, rng);
    }
    if (p.kind.entries > 0.0) {
        add_entries(p, d, rng);
    }
    if (p.kind.column_scales) {
        d.cscale = random_floats((size_t) p.n_in, 2.0f, rng);
    }
    if (p.rank == 0) {
        d.e.cscale = d.cscale.empty() ? nullptr : d.cscale.data();
        return d;
    }
    d.u        = quantised(p.kind.factors, random_floats((size_t) (p.rank * p.n_out), 0.1f, rng), p.rank);
    d.v        = quantised(p.kind.factors, random_floats((size_t) (p.rank * p.n_in), 0.01f, rng), p.n_in);
    d.e.u      = d.u.data();
    d.e.v      = d.v.data();
    d.e.cscale = d.cscale.empty() ? nullptr : d.cscale.data();
    return d;
}

// Reads the delta's bytes, each thread an equal share, and nothing else.
void read_delta(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const random_delta & d   = *(const random_delta *) userdata;
    uint64_t             sum = 0;
    const auto           add = [&](const weight_bytes & bytes) {
        const size_t n_lines = bytes.size() / 64;
        const size_t from    = n_lines * (size_t) ith / (size_t) nth * 64;
        const size_t to      = n_lines * (size_t) (ith + 1) / (size_t) nth * 64;
        sum += read_all(bytes.data() + from, to - from);
    };
    for (const auto & plane : d.sign) {
        add(plane);
    }
    for (const auto * part : { &d.u, &d.v, &d.vsign, &d.usign, &d.vscale, &d.uscale, &d.mask, &d.count, &d.column, &d.entries }) {
        add(*part);
    }
    ((volatile float *) dst->data)[16 * ith] = (float) sum;
}

ggml_tensor * weight(ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, const void * data) {
    ggml_set_no_alloc(ctx, true);
    ggml_tensor * t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
    ggml_set_no_alloc(ctx, false);
    t->data = const_cast<void *>(data);
    return t;
}

} // namespace

op_problem::op_problem(int64_t n_in, int64_t n_out, ggml_type base_type, const delta_kind & kind) :
    n_in(n_in), n_out(n_out), rank(rank_at_an_eighth(n_in, n_out, kind)), base_type(base_type), kind(kind) {
    std::mt19937 rng(1);
    const auto   w = quantised(base_type, random_floats((size_t) (n_in * n_out), 0.01f, rng), n_in);
    deltas.push_back(make_delta(*this, rng));
    const int n = (int) std::min<int64_t>(64, std::max<int64_t>(2, (int64_t) N_BYTES_IN_TURN / delta_bytes()));
    while ((int) deltas.size() < n) {
        deltas.push_back(make_delta(*this, rng));
    }
    base.assign((size_t) n, w);
    if (kind.entries > 0.0) {
        dense = quantised(GGML_TYPE_F16, expanded(deltas[0]), n_in);
    }
    first = deltas[0];
    if (dqrelo_transposes_signs()) { // as the loader of deltas does
        for (random_delta & d : deltas) {
            dqrelo_transpose_entry(&d.e);
        }
    }
}

int64_t op_problem::delta_bytes() const {
    const random_delta & d = deltas[0];
    return n_in * n_out / 8 * kind.n_planes +
           (int64_t) (d.u.size() + d.v.size() + d.vsign.size() + d.usign.size() + d.vscale.size() + d.uscale.size() + d.mask.size() +
                      d.count.size() + d.column.size() + d.entries.size());
}

double op_problem::error(const std::vector<float> & x, const float * got) const {
    const random_delta &     d       = first;
    const bool               codes   = kind.n_codes() > 0;
    const int64_t            rank    = codes ? kind.plane_ranks[0] : this->rank;
    const ggml_type          factors = kind.entries > 0.0 ? GGML_TYPE_F16 : kind.factors; // A sparse weight has no factors.
    const std::vector<float> u = codes ? decoded(kind.plane_ranks, n_out, d.usign, d.uscale, true) : as_floats(factors, d.u, rank * n_out);
    const std::vector<float> v = codes ? decoded(kind.plane_ranks, n_in, d.vsign, d.vscale, false) : as_floats(factors, d.v, rank * n_in);
    const std::vector<float> sparse = kind.entries > 0.0 ? expanded(d) : std::vector<float>();
    std::vector<double>      t((size_t) rank, 0.0);
    for (int64_t k = 0; k < rank; k++) {
        for (int64_t j = 0; j < n_in; j++) {
            const double c = codes && !d.cscale.empty() ? d.cscale[(size_t) j] : 1.0;
            t[(size_t) k] += c * v[(size_t) (k * n_in + j)] * x[(size_t) j];
        }
    }
    double e = 0.0, w = 0.0;
    for (int64_t i = 0; i < n_out; i++) {
        double sum = 0.0;
        for (size_t p = 0; p < d.sign.size(); p++) {
            double signs = 0.0;
            for (int64_t j = 0; j < n_in; j++) {
                const double c = (d.cscale.empty() ? 1.0 : d.cscale[(size_t) j]) * x[(size_t) j];
                signs += (d.sign[p][(size_t) (i * (n_in / 8) + j / 8)] >> (j % 8)) & 1 ? c : -c;
            }
            sum += d.scale[p][kind.row_scales ? (size_t) i : 0] * signs;
        }
        for (int64_t k = 0; k < rank; k++) {
            sum += u[(size_t) (i * rank + k)] * t[(size_t) k];
        }
        for (int64_t j = 0; !sparse.empty() && j < n_in; j++) {
            sum += (double) sparse[(size_t) (i * n_in + j)] * x[(size_t) j];
        }
        e += (got[i] - sum) * (got[i] - sum);
        w += sum * sum;
    }
    return std::sqrt(e / w);
}

run::run(const op_problem & p, method m, const std::vector<float> & x_values, int64_t n_rows, int n_threads) {
    const size_t n_floats =
        (size_t) (n_rows * (p.n_in + p.n_out) +
                  p.n_weights(n_rows) * n_rows *
                      (m == method::composed ? 3 * p.n_out * (1 + p.kind.n_planes) + p.n_in + 2 * p.composed_rank() : p.n_out));
    ctx    = ggml_init({ n_floats * sizeof(float) + ((size_t) 8 << 20), nullptr, false });
    graph  = ggml_new_graph(ctx);
    x      = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, p.n_in, n_rows);
    y      = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, p.n_out, n_rows);
    tokens = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, n_rows);
    memcpy(x->data, x_values.data(), ggml_nbytes(x));
    memset(y->data, 0, ggml_nbytes(y));
    for (int64_t t = 0; t < n_rows; t++) {
        ((float *) tokens->data)[2 * t]     = ggml_dqrelo_length(n_rows); // delta index 0
        ((float *) tokens->data)[2 * t + 1] = 1.0f;                       // request scale
    }
    for (int k = 0; k < p.n_weights(n_rows); k++) {
        ggml_tensor * out = product(p, m, k);
        first             = k == 0 ? out : first;
        ggml_build_forward_expand(graph, out);
    }
    plan = ggml_graph_plan(graph, n_threads, nullptr);
    work.resize(plan.work_size);
    plan.work_data = work.data();
}

run::~run() {
    ggml_free(ctx);
}

ggml_tensor * run::product(const op_problem & p, method m, int k) {
    const random_delta & d = p.deltas[(size_t) k];
    switch (m) {
        case method::base: return ggml_mul_mat(ctx, weight(ctx, p.base_type, p.n_in, p.n_out, p.base[(size_t) k].data()), x);
        case method::fused:
        case method::folded: {
            ggml_tensor * table = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, sizeof(dqrelo_entry));
            memcpy(table->data, &d.e, sizeof(d.e));
            const int32_t stride[] = { 1, 0, 0 };
            ggml_tensor * node     = ggml_dqrelo(ctx, DQRELO_FORM_MATMUL, y, x, nullptr, table, tokens, stride);
            if (m == method::folded) {
                ggml_dqrelo_fold(node, weight(ctx, p.base_type, p.n_in, p.n_out, p.base[(size_t) k].data()));
            }
            return node;
        }
        case method::composed: {
            if (p.kind.entries > 0.0) {
                return ggml_add(ctx, y, ggml_mul_mat(ctx, weight(ctx, GGML_TYPE_F16, p.n_in, p.n_out, p.dense.data()), x));
            }
            const bool      codes = p.kind.n_codes() > 0;
            const ggml_type type  = codes ? GGML_TYPE_Q8_0 : p.kind.factors;
            ggml_tensor *   cx    = d.cscale.empty() ? x : ggml_mul(ctx, x, weight(ctx, GGML_TYPE_F32, p.n_in, 1, d.cscale.data()));
            ggml_tensor *   v     = weight(ctx, type, p.n_in, p.composed_rank(), codes ? d.b.data() : d.v.data());
            ggml_tensor *   u     = weight(ctx, type, p.composed_rank(), p.n_out, codes ? d.a.data() : d.u.data());
            ggml_tensor *   sum   = ggml_mul_mat(ctx, u, ggml_mul_mat(ctx, v, codes ? cx : x));
            for (size_t i = 0; i < d.sign.size(); i++) {
                ggml_tensor * sx = ggml_mul_mat(ctx, weight(ctx, GGML_TYPE_Q1_0, p.n_in, p.n_out, d.q1_0[i].data()), cx);
                sx               = p.kind.row_scales ? ggml_mul(ctx, sx, weight(ctx, GGML_TYPE_F32, p.n_out, 1, d.scale[i].data()))
                                                     : ggml_scale(ctx, sx, d.scale[i][0]);
                sum              = ggml_add(ctx, sum, sx);
            }
            return ggml_add(ctx, y, sum);
        }
        case method::read: {
            ggml_tensor * args[] = { y };
            return ggml_custom_4d(ctx, GGML_TYPE_F32, 1024, 1, 1, 1, args, 1, read_delta, GGML_N_TASKS_MAX, const_cast<random_delta *>(&d));
        }
    }
    return nullptr;
}

} // namespace bench
