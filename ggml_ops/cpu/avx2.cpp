// avx2.cpp: the kernels of kernels.h for AVX2, FMA and F16C, but for the signs, which are in avx2-signs.cpp and avx2-sign-row.cpp.
//
// A step is 8 floats. Lane l of an accumulator adds columns l, l + 8, ... in order, then the 8 lanes are added in one fixed tree. The end
// of a row is read with masked loads.

#include "avx2.h"
#include "bits.h"
#include "factor-kernels.h"
#include "factor-types.h"
#include "integer-panels.h"
#include "kernels.h"
#include "panel-kernels.h"

static inline __m128 sums_f32x4(__m256 v0, __m256 v1, __m256 v2, __m256 v3) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v0, v1), _mm256_hadd_ps(v2, v3));
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}

//
// quantised activation
//

static inline __m256 scaled_f32x8(const float * x, const float * cscale, int64_t j, int64_t n) {
    const __m256 v = load_first_8(x + j, n - j);
    return cscale ? _mm256_mul_ps(v, load_first_8(cscale + j, n - j)) : v;
}

// Stores the low byte of each of 8 values.
static inline void store_i8x8(int8_t * out, __m256i v) {
    const __m256i low   = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1,
                                           -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(v, low);
    _mm_storel_epi64((__m128i *) out, _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

// Returns the largest of 8 values, none of which is negative.
static inline uint32_t max_of_u31x8(__m256i v) {
    uint32_t lanes[8], max = 0;
    _mm256_storeu_si256((__m256i *) lanes, v);
    for (int l = 0; l < 8; l++) {
        max = lanes[l] > max ? lanes[l] : max;
    }
    return max;
}

static void quantize_row_avx2(const float * x, const float * cscale, int64_t n, int8_t * q, struct dqrelo_act * act) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i       max_i32x8 = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; j += 8) {
        const __m256i bits = _mm256_castps_si256(scaled_f32x8(x, cscale, j, n));
        max_i32x8          = _mm256_max_epi32(max_i32x8, _mm256_and_si256(bits, magnitude));
    }
    const uint32_t max_bits = max_of_u31x8(max_i32x8);
    const float    q_max    = (float) dqrelo_q_max(n);
    const float    v_max    = dqrelo_f32_from_bits(max_bits);
    const float    inv      = q_max / v_max;

    const bool    finite    = max_bits < 0x7f800000;
    const bool    zero      = dqrelo_f32_bits(inv) >= 0x7f800000; // scalar.cpp has the same test.
    const __m256  inv_f32x8 = _mm256_set1_ps(finite && !zero ? inv : 0.0f);
    const __m256i keep      = _mm256_set1_epi32(finite ? -1 : 0);
    act->tables             = nullptr;
    act->d                  = !finite ? dqrelo_f32_from_bits(0x7fc00000) : zero ? 0.0f : v_max / q_max;

    const __m256i half      = _mm256_set1_epi32(128);
    __m256i       sum_i32x8 = _mm256_setzero_si256();
    for (int64_t j = 0; j < dqrelo_q_bytes(n) / 2; j += 8) {
        __m256i v      = _mm256_cvtps_epi32(_mm256_mul_ps(scaled_f32x8(x, cscale, j, n), inv_f32x8)); // This rounds to nearest even.
        v              = _mm256_and_si256(v, keep);
        int8_t * block = q + j / DQRELO_Q_BLOCK * (2 * DQRELO_Q_BLOCK) + j % DQRELO_Q_BLOCK;
        store_i8x8(block, _mm256_srai_epi32(_mm256_add_epi32(v, half), 8));
        store_i8x8(block + DQRELO_Q_BLOCK, v);
        sum_i32x8 = _mm256_add_epi32(sum_i32x8, v);
    }
    act->sum = _mm_cvtsi128_si32(sums_i32x4(sum_i32x8, sum_i32x8, sum_i32x8, sum_i32x8));
}

//
// factors
//

namespace {

// Reads 8 16-bit values of a row from column j on, of which n are there; the others become zeros. The end of a row is read with what lies
// before it, which is shifted out: a copy of a few bytes took as long as ten steps.
inline __m128i load_u16x8(const uint16_t * row, int64_t j, int64_t n) {
    if (n >= 8) {
        return _mm_loadu_si128((const __m128i *) (row + j));
    }
    if (j >= 8) {
        alignas(16) static constexpr int8_t FROM[32] = { 0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1 };
        return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) (row + j + n - 8)),
                                _mm_loadu_si128((const __m128i *) (FROM + 2 * (8 - n))));
    }
    uint16_t values[8] = { 0 };
    memcpy(values, row, (size_t) n * sizeof(uint16_t));
    return _mm_loadu_si128((const __m128i *) values);
}

// For every byte of bits, which of the next values goes to each of 8 lanes.
struct lane_table {
    uint8_t lane[256][8] = {};

    constexpr lane_table() {
        for (int byte = 0; byte < 256; byte++) {
            int n = 0;
            for (int b = 0; b < 8; b++) {
                lane[byte][b] = (uint8_t) n;
                n += byte >> b & 1;
            }
        }
    }
};

// A lane behind the last set bit may name value 8, which _mm256_permutevar8x32_ps takes for value 0; the mask clears it.
constexpr lane_table LANE_TABLE;

struct avx2 { // The comment in factor-kernels.h describes it.
    using vectors                   = __m256;
    using sums                      = __m256;
    static constexpr int STEP       = 8;
    static constexpr int MAX_T      = 3;
    static constexpr int PREFETCH_T = 2;

    // Two, which read a from memory, then threes; four rows are taken as 2 + 2.
    static int rows_at_once(int t, int n_t) {
        const int left = n_t - t;
        return left < 3 ? left : t == 0 || left == 4 ? 2 : 3;
    }
    static constexpr int rows_of_a(int T) { return T == 1 ? 8 : 4; }

    struct f32 {
        static constexpr int BYTES = 32;
        static inline __m256 at(const void * row, int64_t j, int64_t n) { return load_first_8((const float *) row + j, n); }
    };

    struct f16 {
        static constexpr int BYTES = 16;
        static inline __m256 at(const void * row, int64_t j, int64_t n) {
            return _mm256_cvtph_ps(load_u16x8((const uint16_t *) row, j, n));
        }
    };

    struct bf16 {
        static constexpr int BYTES = 16;
        static inline __m256 at(const void * row, int64_t j, int64_t n) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_u16x8((const uint16_t *) row, j, n)), 16));
        }
    };

    struct q8_0 {
        static constexpr int BYTES = 9;
        static inline __m256 at(const void * row, int64_t j, int64_t /* n */) {
            const struct dqrelo_q8_0 * block = (const struct dqrelo_q8_0 *) row + j / DQRELO_QK;
            const __m256i              q     = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) (block->qs + j % DQRELO_QK)));
            return _mm256_mul_ps(_mm256_set1_ps(_cvtsh_ss(block->d)), _mm256_cvtepi32_ps(q));
        }
    };

    struct q4_0 {
        static constexpr int BYTES = 5;
        static inline __m256 at(const void * row, int64_t j, int64_t /* n */) {
            const struct dqrelo_q4_0 * block  = (const struct dqrelo_q4_0 *) row + j / DQRELO_QK;
            const __m128i              pairs  = _mm_loadl_epi64((const __m128i *) (block->qs + j % 16));
            const __m128i              nibble = _mm_and_si128(j % DQRELO_QK < 16 ? pairs : _mm_srli_epi16(pairs, 4), _mm_set1_epi8(15));
            const __m256i              q      = _mm256_sub_epi32(_mm256_cvtepu8_epi32(nibble), _mm256_set1_epi32(8));
            return _mm256_mul_ps(_mm256_set1_ps(_cvtsh_ss(block->d)), _mm256_cvtepi32_ps(q));
        }
    };

    struct f8 {
        static constexpr int BYTES = 8;
        static inline __m256 at(const void * row, int64_t j, int64_t n) {
            uint64_t bytes = 0;
            memcpy(&bytes, (const uint8_t *) row + j, (size_t) (n < 8 ? n : 8));
            return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_cvtsi64_si128((long long) bytes)));
        }
    };

    static inline void   hold(__m256 & v) { __asm__("" : "+x"(v)); }
    static inline __m256 zero() { return _mm256_setzero_ps(); }
    static inline void   add(__m256 & acc, const __m256 & a, const __m256 & b) { acc = _mm256_fmadd_ps(a, b, acc); }

    static inline void store_totals(float * out, const __m256 (&four)[4], int n) {
        store_first(out, sums_f32x4(four[0], four[1], four[2], four[3]), n);
    }

    static constexpr int PRODUCTS_COLUMNS = 1024;
    static constexpr int PRODUCTS_R       = 4; // With 3 rows of b these are 12 sums, and 4 registers for what they are made of.
    static constexpr int PRODUCTS_T       = 3;

    static inline void add_totals(float * out, const __m256 (&four)[4], int n, bool add) {
        const __m128 so_far = add ? load_first(out, n) : _mm_setzero_ps();
        store_first(out, _mm_add_ps(so_far, sums_f32x4(four[0], four[1], four[2], four[3])), n);
    }

    using counts = __m256i;

    static inline __m256i load_pairs(const int32_t * q) { return _mm256_loadu_si256((const __m256i *) q); }
    static inline __m256i broadcast_pair(int32_t pair) { return _mm256_set1_epi32(pair); }
    static inline void    hold(__m256i & v) { __asm__("" : "+x"(v)); }
    static inline __m256i no_counts() { return _mm256_setzero_si256(); }
    // This is assembler because GCC 12 makes all products of a step before it adds them, and has no registers for so many.
    static inline void add(__m256i & acc, const __m256i & a, const __m256i & b) {
        __m256i both;
        __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(both) : "x"(a), "x"(b));
    }
    static inline __m256 to_sums(const __m256i & acc) { return _mm256_cvtepi32_ps(acc); }
    static inline __m256 add_sums(const __m256 & a, const __m256 & b) { return _mm256_add_ps(a, b); }
    static inline __m256 load_steps(const float * v, int n) { return load_first_8(v, n); }
    static inline __m256 scaled(const __m256 & v, const __m256 & a_step, float b_step) {
        return _mm256_mul_ps(v, _mm256_mul_ps(a_step, _mm256_set1_ps(b_step)));
    }

    static constexpr int LANES = 8;

    static inline __m256 load_sums(const float * lanes) { return _mm256_loadu_ps(lanes); }

    static constexpr int PANEL_T = 6; // With two accumulators each these are 12, and registers for two vectors of a and one of b.

    static inline __m256 broadcast(const float * v) { return _mm256_broadcast_ss(v); }
    static inline void   add_product(__m256 & acc, const __m256 & a, const __m256 & b) { add(acc, a, b); }
    static inline void   add_first(float * out, const __m256 & v, int n, bool add) {
        store_first_8(out, add ? _mm256_add_ps(load_first_8(out, n), v) : v, n);
    }

    static inline __m256 expand(const float *& values, const uint8_t * bits, int64_t j, int64_t /* n */) {
        const __m256i bit_of = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const int     byte   = bits[j / 8];
        const __m256i lane   = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) LANE_TABLE.lane[byte]));
        const __m256i set    = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(byte), bit_of), bit_of);
        const __m256  v      = _mm256_and_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(values), lane), _mm256_castsi256_ps(set));
        values += __builtin_popcount((unsigned) byte);
        return v;
    }

    static inline void store(float * out, const __m256 & v, int64_t n) { store_first_8(out, v, n); }
};

} // namespace

//
// sum of the parts
//

static void add_delta_avx2(float * dst, const float * y, int n_i, const struct dqrelo_parts * parts) {
    const __m256 d  = _mm256_set1_ps(parts->d);
    const __m256 dz = _mm256_set1_ps(parts->dz);
    const __m256 s  = _mm256_set1_ps(parts->s);
    for (int i = 0; i < n_i; i += 8) {
        const int n     = n_i - i;
        __m256    delta = parts->uv ? load_first_8(parts->uv + i, n) : _mm256_setzero_ps();
        for (int p = 0; p < parts->n_planes; p++) {
            const __m256 scale = parts->scale_step[p] ? load_first_8(parts->scale[p] + i, n) : _mm256_set1_ps(parts->scale[p][0]);
            const __m256 sum   = _mm256_cvtepi32_ps(load_first_8(parts->isum[p] + i, n));
            delta              = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), sum, delta);
        }
        if (parts->zsum) {
            delta = _mm256_fmadd_ps(dz, _mm256_cvtepi32_ps(load_first_8(parts->zsum + i, n)), delta);
        }
        store_first_8(dst + i, _mm256_fmadd_ps(s, delta, load_first_8(y + i, n)), n);
    }
}

static void fold_signs_avx2(float * w, const uint8_t * sign, float scale, const float * cscale, int64_t n) {
    const __m256  scale_f32x8 = _mm256_set1_ps(scale);
    const __m256i bit_of      = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i minus       = _mm256_set1_epi32((int) 0x80000000u);
    for (int64_t j = 0; j < n; j += 8) {
        const __m256i bits  = _mm256_and_si256(_mm256_set1_epi32(sign[j / 8]), bit_of);
        const __m256i unset = _mm256_cmpeq_epi32(bits, _mm256_setzero_si256());
        const __m256  value = cscale ? _mm256_mul_ps(scale_f32x8, _mm256_loadu_ps(cscale + j)) : scale_f32x8;
        const __m256  term  = _mm256_xor_ps(value, _mm256_castsi256_ps(_mm256_and_si256(unset, minus)));
        _mm256_storeu_ps(w + j, _mm256_add_ps(_mm256_loadu_ps(w + j), term));
    }
}

static void quantize_i16_avx2(const float * v, int64_t n, void * q, float * step) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i       max_i32x8 = _mm256_setzero_si256();
    for (int64_t j = 0; j < n; j += 8) {
        max_i32x8 = _mm256_max_epi32(max_i32x8, _mm256_and_si256(_mm256_castps_si256(avx2::f32::at(v, j, n - j)), magnitude));
    }
    const struct dqrelo_i16_scaling scaling   = dqrelo_i16_scaling_of(max_of_u31x8(max_i32x8));
    const __m256i                   keep      = _mm256_set1_epi32(scaling.is_zero ? 0 : -1);
    const __m256                    inv_f32x8 = _mm256_set1_ps(scaling.inverse);
    *step                                     = scaling.step;
    for (int64_t j = 0; j < dqrelo_i16_values(n); j += 8) {
        const __m256i qj = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(avx2::f32::at(v, j, n - j), inv_f32x8)), keep);
        _mm_storeu_si128((__m128i *) ((int16_t *) q + j), _mm_packs_epi32(_mm256_castsi256_si128(qj), _mm256_extracti128_si256(qj, 1)));
    }
}

static void expand_avx2(const float * values, const uint8_t * bits, int64_t n, float * out) {
    for (int64_t j = 0; j < n; j += avx2::STEP) {
        _mm256_storeu_ps(out + j, avx2::expand(values, bits, j, n));
    }
}

static constexpr struct dqrelo_kernels kernels_with(const char * name, bool multiplies_early, bool takes_transposed,
                                                    decltype(dqrelo_kernels::sign_dots)    sign_dots,
                                                    decltype(dqrelo_kernels::tables_bytes) tables_bytes,
                                                    decltype(dqrelo_kernels::make_tables)  make_tables) {
    return {
        /*.name         =*/name,
        /*.interleaves   =*/false,
        /*.multiplies_early =*/multiplies_early,
        /*.takes_transposed =*/takes_transposed,
        /*.tile_t        =*/DQRELO_TILE_T,
        /*.tile_i        =*/DQRELO_TILE_I,
        /*.quantize_row =*/quantize_row_avx2,
        /*.sign_dots    =*/sign_dots,
        /*.tables_bytes =*/tables_bytes,
        /*.make_tables  =*/make_tables,
        /*.dots         =*/dots_of_isa<avx2>,
        /*.add_delta    =*/add_delta_avx2,
        /*.to_float     =*/to_float_of_isa<avx2>,
        /*.fold_signs   =*/fold_signs_avx2,
        /*.products     =*/products_of_isa<avx2>,
        /*.tile_products =*/tile_products_of_isa<avx2>,
        /*.quantize_i16 =*/quantize_i16_avx2,
        /*.products_i16 =*/integer_panel_products<avx2>,
        /*.count_bits   =*/count_bits,
        /*.expand       =*/expand_avx2,
        /*.mask_products =*/mask_products_of_isa<avx2>,
        /*.list_products =*/list_products_of_isa<avx2>,
    };
}

const struct dqrelo_kernels dqrelo_kernels_avx2 = kernels_with("avx2", true, true, sign_dots_avx2, tables_bytes_avx2, make_tables_avx2);
#ifdef DQRELO_CPU_AVXVNNI
const struct dqrelo_kernels dqrelo_kernels_avxvnni =
    kernels_with("avxvnni", false, false, sign_dots_avxvnni, tables_bytes_avxvnni, make_tables_avxvnni);
#endif
