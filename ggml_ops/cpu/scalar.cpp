// scalar.cpp: the kernels of kernels.h as plain loops. This file defines what every other instruction set must compute: the same integers,
// and the same floats up to the order of summation.

#include "bits.h"
#include "factor-types.h"
#include "dqrelo-op.h"
#include "k-quants.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

static void quantize_row_scalar(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act) {
    memset(q, 0, dqrelo_q_bytes(n));

    // The bits of |v| are ordered as integers, with NaN above infinity above every number.
    uint32_t max_bits = 0;
    for (int64_t j = 0; j < n; j++) {
        const uint32_t bits = dqrelo_f32_bits(cscale ? x[j] * cscale[j] : x[j]) & 0x7fffffff;
        max_bits            = bits > max_bits ? bits : max_bits;
    }
    const float q_max = (float) dqrelo_q_max(n);
    const float v_max = dqrelo_f32_from_bits(max_bits);
    const float inv   = q_max / v_max;

    act->tables = nullptr;
    act->sum    = 0;
    act->d      = v_max / q_max;
    if (max_bits >= 0x7f800000) {
        act->d = NAN;
        return;
    }
    // Here v_max is 0, or so small that 1/d is infinite: less than 1e-34.
    if (dqrelo_f32_bits(inv) >= 0x7f800000) {
        act->d = 0.0f;
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        const float   v       = cscale ? x[j] * cscale[j] : x[j];
        const int32_t qj      = (int32_t) lrintf(v * inv); // This rounds to nearest even.
        const int32_t hi      = (qj + 128) >> 8;
        int8_t *      block   = q + j / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK) + j % DQRELO_Q_BLOCK;
        block[0]              = (int8_t) hi;
        block[DQRELO_Q_BLOCK] = (int8_t) (qj - 256 * hi);
        act->sum += qj;
    }
}

static int32_t sign_dot_scalar(const uint8_t * sign, const int8_t * q, int64_t n) {
    int32_t sum = 0;
    for (int64_t j = 0; j < n; j++) {
        const int8_t * block = q + j / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK) + j % DQRELO_Q_BLOCK;
        const int32_t  qj    = 256 * block[0] + block[DQRELO_Q_BLOCK];
        sum += (sign[j / 8] >> (j % 8)) & 1 ? qj : -qj;
    }
    return sum;
}

static void sign_dots_scalar(const struct dqrelo_sign_tile * tiles, int n_tiles, const int8_t * q, int64_t q_stride,
                             const struct dqrelo_act * /* act */, int n_t, int64_t n, int64_t ld, struct dqrelo_ahead * /* ahead */) {
    for (int k = 0; k < n_tiles; k++) {
        for (int t = 0; t < n_t; t++) {
            for (int i = 0; i < tiles[k].n_i; i++) {
                tiles[k].out[t * ld + i] = sign_dot_scalar(tiles[k].sign + i * (n / 8), q + t * q_stride, n);
            }
        }
    }
}

static void to_float_scalar(enum ggml_type type, const void * src, int64_t n, float * out) {
    switch (type) {
        case GGML_TYPE_F32: memcpy(out, src, n * sizeof(float)); break;
        case GGML_TYPE_F16:
            for (int64_t j = 0; j < n; j++) {
                out[j] = dqrelo_f16_to_f32(((const uint16_t *) src)[j]);
            }
            break;
        case GGML_TYPE_BF16:
            for (int64_t j = 0; j < n; j++) {
                out[j] = dqrelo_bf16_to_f32(((const uint16_t *) src)[j]);
            }
            break;
        case GGML_TYPE_Q8_0:
            for (int64_t j = 0; j < n; j++) {
                const struct dqrelo_q8_0 * block = (const struct dqrelo_q8_0 *) src + j / DQRELO_QK;
                out[j]                           = dqrelo_f16_to_f32(block->d) * block->qs[j % DQRELO_QK];
            }
            break;
        case GGML_TYPE_Q4_0:
            for (int64_t j = 0; j < n; j++) {
                const struct dqrelo_q4_0 * block  = (const struct dqrelo_q4_0 *) src + j / DQRELO_QK;
                const int                  k      = j % DQRELO_QK;
                const int                  nibble = k < 16 ? block->qs[k] & 15 : block->qs[k - 16] >> 4;
                out[j]                            = dqrelo_f16_to_f32(block->d) * (nibble - 8);
            }
            break;
        case GGML_TYPE_I8:
            for (int64_t j = 0; j < n; j++) {
                out[j] = dqrelo_f16_to_f32((uint16_t) (((const uint8_t *) src)[j] << 8));
            }
            break;
        default: k_quant_to_float(type, src, n, out); break;
    }
}

static void dots_scalar(enum ggml_type type, const void * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n,
                        float * out, int64_t ld, struct dqrelo_ahead * /* ahead */) {
    float row[256]; // Holds a piece of a row of a as F32. Its length is a multiple of every block.
    for (int i = 0; i < n_i; i++) {
        for (int t = 0; t < n_t; t++) {
            out[t * ld + i] = 0.0f;
        }
        const uint8_t * a_row = (const uint8_t *) a + i * a_stride;
        for (int64_t j0 = 0; j0 < n; j0 += 256) {
            const int64_t n_piece = n - j0 < 256 ? n - j0 : 256;
            to_float_scalar(type, a_row + dqrelo_type_bytes(type, j0), n_piece, row);
            for (int t = 0; t < n_t; t++) {
                float sum = 0.0f;
                for (int64_t j = 0; j < n_piece; j++) {
                    sum += row[j] * b[t][j0 + j];
                }
                out[t * ld + i] += sum;
            }
        }
    }
}

static void add_delta_scalar(float * dst, const float * y, int n_i, const struct dqrelo_parts * parts) {
    for (int i = 0; i < n_i; i++) {
        float delta = parts->uv ? parts->uv[i] : 0.0f;
        for (int p = 0; p < parts->n_planes; p++) {
            delta += parts->d * parts->scale[p][i * parts->scale_step[p]] * (float) parts->isum[p][i];
        }
        delta += parts->zsum ? parts->dz * (float) parts->zsum[i] : 0.0f;
        dst[i] = y[i] + parts->s * delta;
    }
}

static void fold_signs_scalar(float * w, const uint8_t * sign, float scale, const float * cscale, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        const float value = cscale ? scale * cscale[j] : scale;
        w[j] += (sign[j / 8] >> (j % 8)) & 1 ? value : -value;
    }
}

static void products_scalar(const float * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * const * out,
                            bool add) {
    for (int t = 0; t < n_t; t++) {
        for (int i = 0; i < n_i; i++) {
            float sum = 0.0f;
            for (int64_t j = 0; j < n; j++) {
                sum += a[i * a_stride + j] * b[t][j];
            }
            out[t][i] = add ? out[t][i] + sum : sum;
        }
    }
}

static void quantize_i16_scalar(const float * v, int64_t n, void * q, float * step) {
    uint32_t max_bits = 0;
    for (int64_t j = 0; j < n; j++) {
        const uint32_t bits = dqrelo_f32_bits(v[j]) & 0x7fffffff;
        max_bits            = bits > max_bits ? bits : max_bits;
    }
    const struct dqrelo_i16_scaling scaling = dqrelo_i16_scaling_of(max_bits);
    *step                                   = scaling.step;
    for (int64_t j = 0; j < dqrelo_i16_values(n); j++) {
        float value = 0.0f; // Where q lies where v does, value j is read before anything is written over it.
        if (j < n) {
            memcpy(&value, (const char *) v + j * sizeof(float), sizeof(value));
        }
        const int16_t qj = scaling.is_zero ? (int16_t) 0 : (int16_t) lrintf(value * scaling.inverse);
        memcpy((char *) q + j * sizeof(qj), &qj, sizeof(qj));
    }
}

static void products_i16_scalar(const int16_t * a, int64_t a_stride, const float * a_step, int n_i, const int16_t * const * b,
                                const float * b_step, int n_t, int64_t n, float * const * out, bool add) {
    for (int t = 0; t < n_t; t++) {
        for (int i = 0; i < n_i; i++) {
            int64_t sum = 0;
            for (int64_t j = 0; j < n; j++) {
                sum += a[i * a_stride + j] * b[t][j];
            }
            const float value = a_step[i] * b_step[t] * (float) sum;
            out[t][i]         = add ? out[t][i] + value : value;
        }
    }
}

static void mask_products_scalar(const float * const * values, const uint8_t * const * bits, int n_i, const float * b, int64_t n,
                                 float * out, bool add) {
    for (int i = 0; i < n_i; i++) {
        const float * next = values[i];
        float         sum  = 0.0f;
        for (int64_t j = 0; j < n; j++) {
            if ((bits[i][j / 8] >> (j % 8)) & 1) {
                sum += *next++ * b[j];
            }
        }
        out[i] = add ? out[i] + sum : sum;
    }
}

static void list_products_scalar(const float * const * values, const uint8_t * const * column, const uint8_t * const * count, int n_i,
                                 const float * b, int64_t n, float * out, bool add) {
    for (int i = 0; i < n_i; i++) {
        int64_t at  = 0;
        float   sum = 0.0f;
        for (int64_t j = 0; j < n; j += DQRELO_SPARSE_BLOCK) {
            for (int64_t end = at + count[i][j / DQRELO_SPARSE_BLOCK]; at < end; at++) {
                sum += values[i][at] * b[j + column[i][at]];
            }
        }
        out[i] = add ? out[i] + sum : sum;
    }
}

const struct dqrelo_kernels dqrelo_kernels_scalar = {
    /*.name         =*/"scalar",
    /*.interleaves   =*/false,
    /*.multiplies_early =*/false,
    /*.takes_transposed =*/false,
    /*.tile_t        =*/DQRELO_TILE_T,
    /*.tile_i        =*/DQRELO_TILE_I,
    /*.quantize_row =*/quantize_row_scalar,
    /*.sign_dots    =*/sign_dots_scalar,
    /*.tables_bytes =*/nullptr,
    /*.make_tables  =*/nullptr,
    /*.dots         =*/dots_scalar,
    /*.add_delta    =*/add_delta_scalar,
    /*.to_float     =*/to_float_scalar,
    /*.fold_signs   =*/fold_signs_scalar,
    /*.products     =*/products_scalar,
    /*.tile_products =*/products_scalar,
    /*.quantize_i16 =*/quantize_i16_scalar,
    /*.products_i16 =*/products_i16_scalar,
    /*.count_bits   =*/count_bits,
    /*.expand       =*/expand_bits,
    /*.mask_products =*/mask_products_scalar,
    /*.list_products =*/list_products_scalar,
};
