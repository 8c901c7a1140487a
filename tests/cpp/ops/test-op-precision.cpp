// test-op-precision.cpp: how far the op is from F64, and that ordinary ggml ops on the same input are no closer.
//
//   fused      the op DQRELO
//   composed   the same from stock ops: for each plane scale * (Q1_0 mul_mat) of c . x, two mul_mats with sign factors as Q8_0, then two
//              with the factors as they are, adds; a sparse weight as a dense F16 one
//
// Here y is zero, so the error is of the delta alone: ||got - exact|| / ||exact|| over all rows and outputs.

#include "support/check.h"
#include "support/random-entry.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <string>

static constexpr double MAX_ERROR_GAUSSIAN = 0.006;
static constexpr double MAX_ERROR_OUTLIERS = 0.013; // Some channels are 100 times larger here.

static ggml_tensor * make_weight(ggml_context * ctx, ggml_type type, int64_t ne0, int64_t ne1, const bytes & data) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
    GGML_ASSERT(ggml_nbytes(t) == data.size());
    memcpy(t->data, data.data(), data.size());
    return t;
}

static ggml_tensor * make_f32(ggml_context * ctx, int64_t ne0, int64_t ne1, const std::vector<float> & values) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, ne0, ne1);
    memcpy(t->data, values.data(), values.size() * sizeof(float));
    return t;
}

static ggml_tensor * make_q8_0(ggml_context * ctx, int64_t ne0, int64_t ne1, const std::vector<double> & values) {
    ggml_tensor *            t = ggml_new_tensor_2d(ctx, GGML_TYPE_Q8_0, ne0, ne1);
    const std::vector<float> f32(values.begin(), values.end());
    ggml_quantize_chunk(GGML_TYPE_Q8_0, f32.data(), t->data, 0, ne1, ne0, nullptr);
    return t;
}

// Q1_0: blocks of 128 signs, {F16 d, 16 bytes of bits in our order}; d = 1, so that the scale is applied to the sum in F32
static bytes as_q1_0(const bytes & sign) {
    const uint16_t one = ggml_fp32_to_fp16(1.0f);
    bytes          out;
    for (size_t b = 0; b < sign.size(); b += 16) {
        append(out, one);
        out.insert(out.end(), sign.begin() + (ptrdiff_t) b, sign.begin() + (ptrdiff_t) b + 16);
    }
    return out;
}

static ggml_tensor * build_fused(ggml_context * ctx, const random_entry & r, ggml_tensor * x) {
    ggml_tensor * y     = make_f32(ctx, r.e.n_out, x->ne[1], std::vector<float>((size_t) (r.e.n_out * x->ne[1]), 0.0f));
    ggml_tensor * table = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, sizeof(dqrelo_entry));
    memcpy(table->data, &r.e, sizeof(dqrelo_entry));
    ggml_tensor * tokens   = make_f32(ctx, 2, 1, { 0.0f, 1.0f });
    const int32_t stride[] = { 0, 0, 0 };
    return ggml_dqrelo(ctx, DQRELO_FORM_MATMUL, y, x, nullptr, table, tokens, stride);
}

static ggml_tensor * build_composed(ggml_context * ctx, const random_entry & r, ggml_tensor * x) {
    const dqrelo_entry & e   = r.e;
    ggml_tensor *        sum = nullptr;
    ggml_tensor *        cx  = r.cscale.empty() ? x : ggml_mul(ctx, x, make_f32(ctx, e.n_in, 1, r.cscale));
    for (int p = 0; p < e.n_planes; p++) {
        ggml_tensor * sx    = ggml_mul_mat(ctx, make_weight(ctx, GGML_TYPE_Q1_0, e.n_in, e.n_out, as_q1_0(r.sign[p])), cx);
        ggml_tensor * plane = ggml_mul(ctx, sx, make_f32(ctx, (int64_t) r.scale[p].size(), 1, r.scale[p]));
        sum                 = sum ? ggml_add(ctx, sum, plane) : plane;
    }
    if (e.n_codes > 0) {
        const int64_t rank = e.plane_ranks[0];
        ggml_tensor * bx   = ggml_mul_mat(ctx, make_q8_0(ctx, e.n_in, rank, r.signs.b), cx);
        ggml_tensor * abx  = ggml_mul_mat(ctx, make_q8_0(ctx, rank, e.n_out, r.signs.a), bx);
        sum                = sum ? ggml_add(ctx, sum, abx) : abx;
    }
    if (e.entries) {
        const std::vector<float> f32(r.whole().begin(), r.whole().end());
        ggml_tensor *            w = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, e.n_in, e.n_out);
        ggml_fp32_to_fp16_row(f32.data(), (ggml_fp16_t *) w->data, ggml_nelements(w));
        sum = ggml_mul_mat(ctx, w, x);
    }
    if (e.rank > 0) {
        ggml_tensor * vx = ggml_mul_mat(ctx, make_weight(ctx, (ggml_type) e.type_v, e.n_in, e.rank, r.v.data), x);
        ggml_tensor * uv = ggml_mul_mat(ctx, make_weight(ctx, (ggml_type) e.type_u, e.rank, e.n_out, r.u.data), vx);
        sum              = sum ? ggml_add(ctx, sum, uv) : uv;
    }
    return sum;
}

static double relative_error(const ggml_tensor * got, const std::vector<double> & exact) {
    double error = 0.0, norm = 0.0;
    for (size_t i = 0; i < exact.size(); i++) {
        const double difference = ((const float *) got->data)[i] - exact[i];
        error += difference * difference;
        norm += exact[i] * exact[i];
    }
    return std::sqrt(error / norm);
}

static void test_precision(const std::string & what, const entry_options & o, int64_t n_rows, bool outliers) {
    const random_entry  r(o, 51);
    std::mt19937        rng(53);
    std::vector<float>  x;
    std::vector<double> exact;
    for (int64_t t = 0; t < n_rows; t++) {
        const std::vector<float>  row  = random_row(o.n_in, rng, outliers);
        const std::vector<double> want = expect_matmul(r, row.data(), 0.0).value;
        x.insert(x.end(), row.begin(), row.end());
        exact.insert(exact.end(), want.begin(), want.end());
    }
    ggml_context * ctx      = ggml_init({ (size_t) 64 << 20, nullptr, false });
    ggml_tensor *  tx       = make_f32(ctx, o.n_in, n_rows, x);
    ggml_tensor *  fused    = build_fused(ctx, r, tx);
    ggml_tensor *  composed = build_composed(ctx, r, tx);
    ggml_cgraph *  graph    = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, fused);
    ggml_build_forward_expand(graph, composed);
    ggml_graph_compute_with_ctx(ctx, graph, 2);
    const double error_fused    = relative_error(fused, exact);
    const double error_composed = relative_error(composed, exact);
    ggml_free(ctx);

    char errors[64];
    snprintf(errors, sizeof(errors), ": fused %.5f%%, composed %.5f%%", 100.0 * error_fused, 100.0 * error_composed);
    check::begin(("precision/" + what + "/rows=" + std::to_string(n_rows) + (outliers ? "/outliers" : "/gaussian") + errors).c_str());
    CHECK(error_fused <= (outliers ? MAX_ERROR_OUTLIERS : MAX_ERROR_GAUSSIAN));
    CHECK(error_fused <= error_composed);
}

// One row and several, both kinds of activation.
static void test_precisions(const std::string & what, const entry_options & o) {
    for (int64_t n_rows : { 1, 6 }) {
        test_precision(what, o, n_rows, false);
        test_precision(what, o, n_rows, true);
    }
}

int main() {
    entry_options o;
    o.n_in  = 1024;
    o.n_out = 130;
    test_precisions("signs", o);
    for (int n_planes = 2; n_planes <= DQRELO_MAX_PLANES; n_planes++) {
        o.n_planes = n_planes;
        test_precisions("signs/planes=" + std::to_string(n_planes), o);
    }
    o.n_planes      = 2;
    o.scale_per_row = true;
    test_precisions("signs/planes=2/scale per row", o);
    o.cscale = true;
    test_precisions("signs/planes=2/scale per row/cscale", o);

    entry_options s;
    s.n_in     = 1024;
    s.n_out    = 130;
    s.n_planes = 0;
    for (const std::vector<int> & ranks : { std::vector<int>{ 128 }, { 128, 96, 64, 32 } }) {
        s.plane_ranks = ranks;
        test_precisions("sign factors/planes=" + std::to_string(ranks.size()), s);
    }
    s.cscale = true;
    test_precisions("sign factors/planes=4/cscale", s);

    entry_options f;
    f.n_in  = 1024;
    f.n_out = 130;
    f.rank  = 64;
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        const std::string name = std::string("factors ") + ggml_type_name(type);
        f.type_u = f.type_v = type;
        f.n_planes          = 1;
        test_precisions("signs, " + name, f);
        f.n_planes = 0;
        test_precisions(name, f);
    }
    for (sparsity kind : { sparsity::MASK, sparsity::LISTS }) {
        entry_options p;
        p.n_in         = 1024;
        p.n_out        = 130;
        p.sparse       = kind;
        p.type_entries = GGML_TYPE_I8;
        test_precisions(kind == sparsity::MASK ? "sparse by mask" : "sparse by lists", p);
    }
    return check::finish();
}
