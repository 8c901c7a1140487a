// avx512vnni.cpp: the kernels of kernels.h for AVX-512 F, BW, VL, DQ and VNNI, but for the signs, which are in avx512vnni-signs.cpp.
//
// Lane l of an accumulator adds columns l, l + 16, ... in order, then the 16 lanes are added in one fixed tree. The end of a row is read
// with masked loads.

#include "avx512vnni.h"

#include "bits.h"
#include "factor-kernels.h"
#include "factor-types.h"
#include "integer-panels.h"
#include "panel-kernels.h"

static inline __m128 sums_f32x4(__m512 v0, __m512 v1, __m512 v2, __m512 v3) {
    const __m512  a   = _mm512_add_ps(_mm512_unpacklo_ps(v0, v1), _mm512_unpackhi_ps(v0, v1));
    const __m512  b   = _mm512_add_ps(_mm512_unpacklo_ps(v2, v3), _mm512_unpackhi_ps(v2, v3));
    const __m512d a64 = _mm512_castps_pd(a);
    const __m512d b64 = _mm512_castps_pd(b);
    const __m512  c   = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a64, b64)), _mm512_castpd_ps(_mm512_unpackhi_pd(a64, b64)));
    const __m256  d   = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    return _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}

//
// factors
//

namespace {

// Returns the scale of a block in all lanes, without the way through a scalar register that the compiler would take.
inline __m512 block_scale(uint16_t d) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short) d));
}

struct f32x32 { // v0 has columns 0 to 15 of a step, v1 has 16 to 31.
    __m512 v0, v1;
};

struct avx512vnni { // The comment in factor-kernels.h describes it.
    using vectors                   = f32x32;
    using sums                      = __m512;
    static constexpr int STEP       = 32;
    static constexpr int MAX_T      = 3;
    static constexpr int PREFETCH_T = 2;

    static int           rows_at_once(int t, int n_t) { return ::rows_at_once(t, n_t); }
    static constexpr int rows_of_a(int /* T */) { return 8; }

    struct f32 {
        static constexpr int BYTES = 128;
        using element              = float;
        static inline __m512 values_f32x16(const float * src, __mmask16 m) { return _mm512_maskz_loadu_ps(m, src); }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            const float * src = (const float *) row + j;
            return { values_f32x16(src, columns_m16(0, n)), values_f32x16(src + 16, columns_m16(16, n)) };
        }
    };

    struct f16 {
        static constexpr int BYTES = 64;
        using element              = uint16_t;
        static inline __m512 values_f32x16(const uint16_t * src, __mmask16 m) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, src)); }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            return { values_f32x16((const uint16_t *) row + j, columns_m16(0, n)),
                     values_f32x16((const uint16_t *) row + j + 16, columns_m16(16, n)) };
        }
    };

    struct bf16 {
        static constexpr int BYTES = 64;
        using element              = uint16_t;
        static inline __m512 values_f32x16(const uint16_t * src, __mmask16 m) {
            const __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, src));
            return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            return { values_f32x16((const uint16_t *) row + j, columns_m16(0, n)),
                     values_f32x16((const uint16_t *) row + j + 16, columns_m16(16, n)) };
        }
    };

    struct q8_0 {
        static constexpr int BYTES = sizeof(struct dqrelo_q8_0);
        static inline __m512 scaled(const struct dqrelo_q8_0 * block, const int8_t * q) {
            const __m512i q_i32x16 = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) q));
            return _mm512_mul_ps(block_scale(block->d), _mm512_cvtepi32_ps(q_i32x16));
        }
        static inline f32x32 at(const void * row, int64_t j, int64_t /* n */) {
            const struct dqrelo_q8_0 * block = (const struct dqrelo_q8_0 *) row + j / DQRELO_QK;
            return { scaled(block, block->qs), scaled(block, block->qs + 16) };
        }
    };

    struct q4_0 {
        static constexpr int BYTES = sizeof(struct dqrelo_q4_0);
        static inline f32x32 at(const void * row, int64_t j, int64_t /* n */) {
            const __m512               values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
            const struct dqrelo_q4_0 * block  = (const struct dqrelo_q4_0 *) row + j / DQRELO_QK;
            const __m512i              pairs  = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) block->qs));
            const __m512               d      = block_scale(block->d);
            // The permutation looks at the low 4 bits only, so the high nibbles need not be masked out.
            return { _mm512_mul_ps(d, _mm512_permutexvar_ps(pairs, values)),
                     _mm512_mul_ps(d, _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), values)) };
        }
    };

    struct f8 {
        static constexpr int BYTES = 32;
        static inline __m512 values_f32x16(const uint8_t * src, __mmask16 m) {
            return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(m, src)), 8));
        }
        static inline f32x32 at(const void * row, int64_t j, int64_t n) {
            return { values_f32x16((const uint8_t *) row + j, columns_m16(0, n)),
                     values_f32x16((const uint8_t *) row + j + 16, columns_m16(16, n)) };
        }
    };

    static inline void   hold(f32x32 & v) { __asm__("" : "+v"(v.v0), "+v"(v.v1)); }
    static inline __m512 zero() { return _mm512_setzero_ps(); }
    static inline void   add(__m512 & acc, const f32x32 & a, const f32x32 & b) {
        acc = _mm512_fmadd_ps(a.v0, b.v0, acc);
        acc = _mm512_fmadd_ps(a.v1, b.v1, acc);
    }

    static inline void store_totals(float * out, const __m512 (&four)[4], int n) {
        _mm_mask_storeu_ps(out, rows_m4(n), sums_f32x4(four[0], four[1], four[2], four[3]));
    }

    static constexpr int PRODUCTS_COLUMNS = 2048;
    static constexpr int PRODUCTS_R       = 8; // With 3 rows of b these are 24 sums, and 8 registers for what they are made of.
    static constexpr int PRODUCTS_T       = 3;

    static inline void add_totals(float * out, const __m512 (&four)[4], int n, bool add) {
        const __m128 so_far = _mm_maskz_loadu_ps(add ? rows_m4(n) : 0, out);
        _mm_mask_storeu_ps(out, rows_m4(n), _mm_add_ps(so_far, sums_f32x4(four[0], four[1], four[2], four[3])));
    }

    using counts = __m512i;

    static inline __m512i load_pairs(const int32_t * q) { return _mm512_loadu_si512(q); }
    static inline __m512i broadcast_pair(int32_t pair) { return _mm512_set1_epi32(pair); }
    static inline void    hold(__m512i & v) { __asm__("" : "+v"(v)); }
    static inline __m512i no_counts() { return _mm512_setzero_si512(); }
    // This is assembler because GCC 12 copies the accumulators of the intrinsic in every step of a loop.
    static inline void add(__m512i & acc, const __m512i & a, const __m512i & b) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    }
    static inline __m512 to_sums(const __m512i & acc) { return _mm512_cvtepi32_ps(acc); }
    static inline __m512 add_sums(const __m512 & a, const __m512 & b) { return _mm512_add_ps(a, b); }
    static inline __m512 load_steps(const float * v, int n) { return _mm512_maskz_loadu_ps(columns_m16(0, n), v); }
    static inline __m512 scaled(const __m512 & v, const __m512 & a_step, float b_step) {
        return _mm512_mul_ps(v, _mm512_mul_ps(a_step, _mm512_set1_ps(b_step)));
    }

    static constexpr int LANES = 16;

    static inline __m512 load_sums(const float * lanes) { return _mm512_loadu_ps(lanes); }

    static constexpr int PANEL_T = 8; // GCC 12 has no registers for more.

    static inline __m512 broadcast(const float * v) { return _mm512_set1_ps(*v); }
    static inline void   hold(__m512 & v) { __asm__("" : "+v"(v)); }
    static inline void   add_product(__m512 & acc, const __m512 & a, const __m512 & b) { acc = _mm512_fmadd_ps(a, b, acc); }
    static inline void   add_first(float * out, const __m512 & v, int n, bool add) {
        const __mmask16 m = columns_m16(0, n);
        _mm512_mask_storeu_ps(out, m, add ? _mm512_add_ps(_mm512_maskz_loadu_ps(m, out), v) : v);
    }

    // Returns 32 bits, zeros from bit n on; j and n are multiples of 8.
    static inline uint32_t bits_u32(const uint8_t * bits, int64_t j, int64_t n) {
        uint32_t word = 0;
        if (j + 32 <= n) {
            memcpy(&word, bits + j / 8, sizeof(word));
        } else {
            for (int64_t b = 0; j + 8 * b < n; b++) {
                word |= (uint32_t) bits[j / 8 + b] << (8 * b);
            }
        }
        return word;
    }
    static inline f32x32 expand(const float *& values, const uint8_t * bits, int64_t j, int64_t n) {
        const uint32_t word   = bits_u32(bits, j, n);
        const float *  second = values + __builtin_popcount(word & 0xffff);
        const f32x32   v      = { _mm512_maskz_expand_ps((__mmask16) word, _mm512_loadu_ps(values)),
                                  _mm512_maskz_expand_ps((__mmask16) (word >> 16), _mm512_loadu_ps(second)) };
        values += __builtin_popcount(word);
        return v;
    }

    static inline void store(float * out, const f32x32 & v, int64_t n) {
        _mm512_mask_storeu_ps(out, columns_m16(0, n), v.v0);
        _mm512_mask_storeu_ps(out + 16, columns_m16(16, n), v.v1);
    }
};

} // namespace

//
// short rows
//

// dots for rows of at most 16 columns, as U has in many adapters: half of a step. Sums have the bits that a step would give.
template <class LOAD>
static void dots_short(const void * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n, float * out, int64_t ld,
                       struct dqrelo_ahead * after) {
    constexpr int       R     = 8;
    const __mmask16     m     = columns_m16(0, n);
    struct dqrelo_ahead ahead = *after; // A copy may stay in registers.
    for (int i = 0; i < n_i; i += R) {
        const uint8_t * row = (const uint8_t *) a + i * a_stride;
        __m512          rows[R];
        UNROLLED
        for (int r = 0; r < R; r++) {
            rows[r] = LOAD::values_f32x16((const typename LOAD::element *) row, m);
            row += i + r + 1 < n_i ? a_stride : 0; // Behind the end the last row is taken again.
        }
        for (int64_t k = 0; k < R * a_stride; k += 64) {
            prefetch_ahead(ahead);
        }
        for (int t = 0; t < n_t; t++) {
            const __m512 x = _mm512_maskz_loadu_ps(m, b[t]);
            UNROLLED
            for (int r = 0; r < R; r += 4) {
                __m512 four[4];
                UNROLLED
                for (int k = 0; k < 4; k++) {
                    four[k] = _mm512_fmadd_ps(rows[r + k], x, _mm512_setzero_ps());
                }
                avx512vnni::store_totals(out + t * ld + i + r, four, n_i - i - r);
            }
        }
    }
    *after = ahead;
}

static void dots_avx512vnni(enum ggml_type type, const void * a, int64_t a_stride, int n_i, const float * const * b, int n_t, int64_t n,
                            float * out, int64_t ld, struct dqrelo_ahead * ahead) {
    if (n <= avx512vnni::STEP / 2 && type == GGML_TYPE_F16) {
        dots_short<avx512vnni::f16>(a, a_stride, n_i, b, n_t, n, out, ld, ahead);
    } else if (n <= avx512vnni::STEP / 2 && type == GGML_TYPE_BF16) {
        dots_short<avx512vnni::bf16>(a, a_stride, n_i, b, n_t, n, out, ld, ahead);
    } else if (n <= avx512vnni::STEP / 2 && type == GGML_TYPE_F32) {
        dots_short<avx512vnni::f32>(a, a_stride, n_i, b, n_t, n, out, ld, ahead);
    } else {
        dots_of_isa<avx512vnni>(type, a, a_stride, n_i, b, n_t, n, out, ld, ahead);
    }
}

//
// sum of the parts
//

static void add_delta_avx512vnni(float * dst, const float * y, int n_i, const struct dqrelo_parts * parts) {
    const __m512 d  = _mm512_set1_ps(parts->d);
    const __m512 dz = _mm512_set1_ps(parts->dz);
    const __m512 s  = _mm512_set1_ps(parts->s);
    for (int i = 0; i < n_i; i += 16) {
        const __mmask16 m     = columns_m16(i, n_i);
        __m512          delta = parts->uv ? _mm512_maskz_loadu_ps(m, parts->uv + i) : _mm512_setzero_ps();
        for (int p = 0; p < parts->n_planes; p++) {
            const __m512 scale = parts->scale_step[p] ? _mm512_maskz_loadu_ps(m, parts->scale[p] + i) : _mm512_set1_ps(parts->scale[p][0]);
            const __m512 sum   = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(m, parts->isum[p] + i));
            delta              = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), sum, delta);
        }
        if (parts->zsum) {
            delta = _mm512_fmadd_ps(dz, _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(m, parts->zsum + i)), delta);
        }
        _mm512_mask_storeu_ps(dst + i, m, _mm512_fmadd_ps(s, delta, _mm512_maskz_loadu_ps(m, y + i)));
    }
}

// Returns values - scale where a sign is -1, values + scale where it is 1.
static inline __m512 with_signs(__m512 values, __mmask16 sign, __m512 scale) {
    return _mm512_mask_add_ps(_mm512_sub_ps(values, scale), sign, values, scale);
}

static void fold_signs_avx512vnni(float * w, const uint8_t * sign, float scale, const float * cscale, int64_t n) {
    const __m512 scale_f32x16 = _mm512_set1_ps(scale);
    int64_t      j            = 0;
    for (; j + 16 <= n; j += 16) {
        __mmask16 bits;
        memcpy(&bits, sign + j / 8, sizeof(bits));
        const __m512 value = cscale ? _mm512_mul_ps(scale_f32x16, _mm512_loadu_ps(cscale + j)) : scale_f32x16;
        _mm512_storeu_ps(w + j, with_signs(_mm512_loadu_ps(w + j), bits, value));
    }
    if (j < n) {
        const __mmask16 m     = columns_m16(j, n);
        const __m512    value = cscale ? _mm512_mul_ps(scale_f32x16, _mm512_maskz_loadu_ps(m, cscale + j)) : scale_f32x16;
        _mm512_mask_storeu_ps(w + j, m, with_signs(_mm512_maskz_loadu_ps(m, w + j), sign[j / 8], value));
    }
}

static inline __m512i magnitude_bits(__m512 v) {
    return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}

// Returns the largest magnitude's bits, which are ordered as integers.
static inline uint32_t max_bits_of(const float * v, int64_t n) {
    __m512i max_i32 = _mm512_setzero_si512();
    int64_t j       = 0;
    for (; j + 16 <= n; j += 16) {
        max_i32 = _mm512_max_epi32(max_i32, magnitude_bits(_mm512_loadu_ps(v + j)));
    }
    max_i32 = _mm512_max_epi32(max_i32, magnitude_bits(_mm512_maskz_loadu_ps(columns_m16(j, n), v + j)));
    return (uint32_t) _mm512_reduce_max_epi32(max_i32);
}

static void quantize_i16_avx512vnni(const float * v, int64_t n, void * q, float * step) {
    const struct dqrelo_i16_scaling scaling  = dqrelo_i16_scaling_of(max_bits_of(v, n));
    const __mmask16                 keep     = scaling.is_zero ? 0 : 0xffff;
    const __m512                    inv_f32  = _mm512_set1_ps(scaling.inverse);
    const auto                      integers = [&](__m512 values) { // They are rounded to nearest even.
        return _mm512_cvtepi32_epi16(_mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(values, inv_f32)));
    };
    *step     = scaling.step;
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
        _mm256_storeu_si256((__m256i *) ((int16_t *) q + j), integers(_mm512_loadu_ps(v + j)));
    }
    for (; j < dqrelo_i16_values(n); j += 16) {
        _mm256_storeu_si256((__m256i *) ((int16_t *) q + j), integers(_mm512_maskz_loadu_ps(columns_m16(j, n), v + j)));
    }
}

static void expand_avx512vnni(const float * values, const uint8_t * bits, int64_t n, float * out) {
    for (int64_t j = 0; j < n; j += avx512vnni::STEP) {
        avx512vnni::store(out + j, avx512vnni::expand(values, bits, j, n), n - j);
    }
}

const struct dqrelo_kernels dqrelo_kernels_avx512vnni = {
    /*.name         =*/"avx512vnni",
    /*.interleaves   =*/true,
    /*.multiplies_early =*/false,
    /*.takes_transposed =*/false,
    /*.tile_t        =*/TABLE_ROWS,
    /*.tile_i        =*/TABLE_FEATURES,
    /*.quantize_row =*/quantize_row_avx512vnni,
    /*.sign_dots    =*/sign_dots_avx512vnni,
    /*.tables_bytes =*/tables_bytes_avx512vnni,
    /*.make_tables  =*/make_tables_avx512vnni,
    /*.dots         =*/dots_avx512vnni,
    /*.add_delta    =*/add_delta_avx512vnni,
    /*.to_float     =*/to_float_of_isa<avx512vnni>,
    /*.fold_signs   =*/fold_signs_avx512vnni,
    /*.products     =*/products_of_isa<avx512vnni>,
    /*.tile_products =*/tile_products_of_isa<avx512vnni>,
    /*.quantize_i16 =*/quantize_i16_avx512vnni,
    /*.products_i16 =*/integer_panel_products<avx512vnni>,
    /*.count_bits   =*/count_bits,
    /*.expand       =*/expand_avx512vnni,
    /*.mask_products =*/mask_products_of_isa<avx512vnni>,
    /*.list_products =*/list_products_of_isa<avx512vnni>,
};
