// bench-activation.cpp: which form of the quantised activation should the sign planes read?
//
//   int8/32   one byte a value, a scale for 32 values (Q8_0's)
//   int8/64   one byte a value, a scale for 64 values
//   int16     two bytes a value, a scale a row, vpdpwssd
//   2xint8    the same 16-bit integers as a high and a low byte, vpdpbusd (what the kernels do)
//
// Speed: one row of x against a 4096 x 4096 plane of signs, one thread, eight rows of signs at once. Error: ||got - exact|| / ||exact||
// over the outputs of that product, on Gaussian x and with 1 in 128 channels 100 times larger.
// AVX-512 VNNI only.

#include "support/bench.h"

#include "cpu/kernels.h"

#include <cmath>
#include <immintrin.h>

static constexpr int N = 4096; // columns and rows
static constexpr int R = 8;    // rows of signs at once

struct block_row {
    int                 n_block;
    std::vector<int8_t> q;
    std::vector<float>  d;
    std::vector<float>  sum; // sum of each block, times its d
};

static block_row quantise_blocks(const std::vector<float> & x, int n_block) {
    block_row out = { n_block, std::vector<int8_t>(N), {}, {} };
    for (int b = 0; b < N; b += n_block) {
        float v_max = 0.0f;
        for (int j = b; j < b + n_block; j++) {
            v_max = std::max(v_max, std::fabs(x[(size_t) j]));
        }
        const float d   = v_max / 127.0f;
        int         sum = 0;
        for (int j = b; j < b + n_block; j++) {
            out.q[(size_t) j] = (int8_t) lrintf(d > 0.0f ? x[(size_t) j] / d : 0.0f);
            sum += out.q[(size_t) j];
        }
        out.d.push_back(d);
        out.sum.push_back(d * (float) sum);
    }
    return out;
}

static __mmask64 signs(const uint8_t * row, int j) {
    uint64_t bits;
    memcpy(&bits, row + j / 8, sizeof(bits));
    return bits;
}

static void blocks_int8(const uint8_t * sign, const block_row & x, float * out) {
    const __m512i one   = _mm512_set1_epi8(1);
    float         total = 0.0f;
    for (float s : x.sum) {
        total += s;
    }
    for (int i = 0; i < N; i += R) {
        __m512 acc[R] = {};
        for (int j = 0; j < N; j += 64) {
            const __m512i q = _mm512_loadu_si512(x.q.data() + j);
            const float * d = x.d.data() + j / x.n_block;
            // The lanes have columns 0..31 and 32..63 of the step.
            const __m512 scale = x.n_block == 64 ? _mm512_set1_ps(d[0]) : _mm512_insertf32x8(_mm512_set1_ps(d[0]), _mm256_set1_ps(d[1]), 1);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m512i b = _mm512_maskz_mov_epi8(signs(sign + (i + r) * (N / 8), j), one);
                acc[r]          = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), b, q)), acc[r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            out[i + r] = 2.0f * _mm512_reduce_add_ps(acc[r]) - total;
        }
    }
}

static void words_int16(const uint8_t * sign, const std::vector<int16_t> & q, float d, int32_t sum, float * out) {
    const __m512i one = _mm512_set1_epi16(1);
    for (int i = 0; i < N; i += R) {
        __m512i acc[R] = {};
        for (int j = 0; j < N; j += 32) {
            const __m512i v = _mm512_loadu_si512(q.data() + j);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                uint32_t bits;
                memcpy(&bits, sign + (i + r) * (N / 8) + j / 8, sizeof(bits));
                // The kernels use assembler for such products too, and avx512vnni.cpp says why.
                __asm__("vpdpwssd %2, %1, %0" : "+v"(acc[r]) : "v"(_mm512_maskz_mov_epi16(bits, one)), "v"(v));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            out[i + r] = d * (float) (2 * _mm512_reduce_add_epi32(acc[r]) - sum);
        }
    }
}

static std::vector<double> exact(const bench::weight_bytes & sign, const std::vector<float> & x) {
    std::vector<double> out;
    for (int i = 0; i < N; i++) {
        double sum = 0.0;
        for (int j = 0; j < N; j++) {
            sum += (sign[(size_t) (i * (N / 8) + j / 8)] >> (j % 8)) & 1 ? x[(size_t) j] : -x[(size_t) j];
        }
        out.push_back(sum);
    }
    return out;
}

static double error(const std::vector<float> & got, const std::vector<double> & want) {
    double e = 0.0, w = 0.0;
    for (size_t i = 0; i < want.size(); i++) {
        e += (got[i] - want[i]) * (got[i] - want[i]);
        w += want[i] * want[i];
    }
    return std::sqrt(e / w);
}

struct variants {
    const bench::weight_bytes & sign;
    block_row                   b32, b64;
    std::vector<int8_t>         q;
    std::vector<int16_t>        words;
    dqrelo_act                  act;
    std::vector<int32_t>        isum = std::vector<int32_t>(N);
    std::vector<float>          out  = std::vector<float>(N);

    variants(const bench::weight_bytes & signs, const std::vector<float> & x) :
        sign(signs), b32(quantise_blocks(x, 32)), b64(quantise_blocks(x, 64)), q((size_t) dqrelo_q_bytes(N)) {
        dqrelo_kernels_avx512vnni.quantize_row(x.data(), nullptr, N, q.data(), &act);
        for (int j = 0; j < N; j++) {
            const size_t place = (size_t) dqrelo_q_place(dqrelo_kernels_avx512vnni.interleaves, j);
            words.push_back((int16_t) (256 * q[place] + q[place + DQRELO_Q_BLOCK]));
        }
    }
    void run(int which) {
        switch (which) {
            case 0: blocks_int8(sign.data(), b32, out.data()); break;
            case 1: blocks_int8(sign.data(), b64, out.data()); break;
            case 2: words_int16(sign.data(), words, act.d, act.sum, out.data()); break;
            case 3:
                for (int i = 0; i < N; i += 64) {
                    dqrelo_ahead           nothing = {};
                    const dqrelo_sign_tile tile    = { sign.data() + i * (N / 8), 64, isum.data() + i };
                    dqrelo_kernels_avx512vnni.sign_dots(&tile, 1, q.data(), dqrelo_q_bytes(N), &act, 1, N, N, &nothing);
                }
                for (int i = 0; i < N; i++) {
                    out[(size_t) i] = act.d * (float) isum[(size_t) i];
                }
                break;
        }
    }
};

int main(int argc, char ** argv) {
    if (!__builtin_cpu_supports("avx512vnni")) {
        fprintf(stderr, "bench-activation: error: this CPU has no AVX-512 VNNI\n");
        return 1;
    }
    bench::print_machine(argc, argv);
    std::mt19937                    rng(1);
    std::normal_distribution<float> normal;
    std::vector<float>              gaussian(N), outliers(N);
    for (int j = 0; j < N; j++) {
        gaussian[(size_t) j] = normal(rng);
        outliers[(size_t) j] = gaussian[(size_t) j] * (j % 128 == 77 ? 100.0f : 1.0f);
    }
    const bench::weight_bytes sign = bench::random_bytes((size_t) N * N / 8, rng);
    variants                  a(sign, gaussian), b(sign, outliers);
    const std::vector<double> want_a = exact(sign, gaussian), want_b = exact(sign, outliers);

    const char * names[] = { "int8/32", "int8/64", "int16", "2xint8" };
    printf("%-8s %10s %16s %12s %12s\n", "", "us", "GB/s of signs", "gaussian", "outliers");
    for (int v = 0; v < 4; v++) {
        const double seconds = bench::best(bench::clock::thread, 1.0, [&] { a.run(v); });
        a.run(v);
        b.run(v);
        printf("%-8s %10.1f %16.1f %11.4f%% %11.4f%%\n", names[v], seconds * 1e6, N / 8.0 * N / seconds * 1e-9,
               100.0 * error(a.out, want_a), 100.0 * error(b.out, want_b));
    }
    const std::vector<uint64_t> memory((size_t) 32 << 20, 1); // 256 MiB are more than any cache holds.
    uint64_t                    sum = 0;
    const double seconds = bench::best(bench::clock::thread, 1.0,
                                       [&] { sum += bench::read_all((const uint8_t *) memory.data(), memory.size() * sizeof(memory[0])); });
    printf("memory read, one thread: %.1f GB/s (checksum %llu)\n", (double) memory.size() * 8.0 / seconds * 1e-9,
           (unsigned long long) (sum != 0));
    return 0;
}
