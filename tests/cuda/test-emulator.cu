// test-emulator.cu: what the emulator models, against plain C++, and that it finds the faults that are planted here.
// With an argument: runs the kernel with that fault. test-emulator.cmake expects what each must end with.
#include "support/check.h"

#ifndef CUEMU
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <unistd.h>

static constexpr int N_THREADS = 256;

// Device memory with the contents of a vector, and back.
template <typename T>
struct device_array {
    T *    data = nullptr;
    size_t n;
    explicit device_array(const std::vector<T> & values) : n(values.size()) {
        if (cudaMalloc((void **) &data, n * sizeof(T)) != cudaSuccess ||
            cudaMemcpy(data, values.data(), n * sizeof(T), cudaMemcpyHostToDevice) != cudaSuccess) {
            abort();
        }
    }
    ~device_array() { cudaFree(data); }
    device_array(const device_array &)             = delete;
    device_array & operator=(const device_array &) = delete;

    std::vector<T> read() const {
        std::vector<T> values(n);
        if (cudaMemcpy(values.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess) {
            abort();
        }
        return values;
    }
};

static std::vector<float> random_values(size_t n) {
    std::vector<float> values(n);
    uint32_t           state = 1;
    for (float & v : values) {
        state = state * 1664525u + 1013904223u;
        v     = (float) (state >> 8) / (1 << 23) - 1.0f;
    }
    return values;
}

//
// what is modelled
//

static __device__ float warp_sum(float x) {
    for (int bits = 16; bits > 0; bits >>= 1) {
        x += __shfl_xor_sync(0xffffffffu, x, bits);
    }
    return x;
}

// Computes y[block] = sum of x[block][n]. RACE: the barrier between writing and reading `part` is missing.
template <bool RACE>
static __global__ void block_sum(const float * x, float * y, int n) {
    __shared__ float part[N_THREADS / 32];
    float            sum = 0.0f;
    for (int i = (int) threadIdx.x; i < n; i += N_THREADS) {
        sum += x[(size_t) blockIdx.x * n + i];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = sum;
    }
    if (!RACE) {
        __syncthreads();
    }
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < N_THREADS / 32 ? part[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) {
            y[blockIdx.x] = sum;
        }
    }
}

// Moves the positive values of x together, and makes prefix sums of each warp: vote, atomic, shuffles in both directions, dynamic shared
// memory.
static __global__ void compact(const int * x, int * y, int * count, int * prefix, int n) {
    extern __shared__ int staged[];
    const int             i        = (int) (blockIdx.x * blockDim.x + threadIdx.x);
    const int             lane     = (int) threadIdx.x % 32;
    const int             value    = i < n ? x[i] : 0;
    const unsigned        positive = __ballot_sync(0xffffffffu, value > 0);
    int                   base     = 0;
    if (lane == 0) {
        base = atomicAdd(count, __popc(positive));
    }
    base = __shfl_sync(0xffffffffu, base, 0);
    if (value > 0) {
        y[base + __popc(positive & ((1u << lane) - 1))] = value;
    }
    int sum = value;
    for (int d = 1; d < 32; d <<= 1) {
        const int before = __shfl_up_sync(0xffffffffu, sum, d);
        sum += lane >= d ? before : 0;
    }
    staged[threadIdx.x] = sum;
    __syncthreads();
    if (i < n) {
        prefix[i] = staged[threadIdx.x];
    }
}

static __global__ void dot_bytes(const int4 * a, const int4 * b, int * out) {
    const int4 va    = a[threadIdx.x];
    const int4 vb    = b[threadIdx.x];
    const int  sum   = __dp4a(va.w, vb.w, __dp4a(va.z, vb.z, __dp4a(va.y, vb.y, __dp4a(va.x, vb.x, 0))));
    out[threadIdx.x] = sum;
}

// Half to float and back, for every bit pattern.
static __global__ void convert_half(const unsigned short * in, float * wide, unsigned short * back) {
    const int i = (int) (blockIdx.x * blockDim.x + threadIdx.x);
    wide[i]     = __half2float(__ushort_as_half(in[i]));
    back[i]     = __half_as_ushort(__float2half(wide[i]));
}

// The block that comes i-th waits for the one before. (A kernel must not wait for a block by its index: their order is not known.)
// NO_FENCE: the value is not published before its flag.
template <bool NO_FENCE>
static __global__ void chain(int * values, int * flags, int * n_came) {
    __shared__ int before;
    __shared__ int i; // The script preprocess.py takes one variable a declaration.
    if (threadIdx.x == 0) {
        i = atomicAdd(n_came, 1);
        while (i > 0 && atomicAdd(flags + i - 1, 0) == 0) {
            __nanosleep(20);
        }
        if (!NO_FENCE) {
            __threadfence();
        }
        before = i > 0 ? values[i - 1] : 0;
    }
    __syncthreads();
    if (threadIdx.x == 1) {
        values[i] = before + 1;
        if (!NO_FENCE) {
            __threadfence();
        }
        atomicExch(flags + i, 1);
    }
}

//
// faults
//

static __global__ void divergent_barrier(int * y) {
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = 1;
}

static __global__ void missed_shuffle(int * y) {
    int value = (int) threadIdx.x;
    if (threadIdx.x < 8) {
        value = __shfl_xor_sync(0xffffffffu, value, 1);
    }
    __syncthreads();
    y[threadIdx.x] = value;
}

static __global__ void different_masks(int * y) {
    y[threadIdx.x] = __shfl_xor_sync(threadIdx.x == 0 ? 0x00000003u : 0xffffffffu, (int) threadIdx.x, 1);
}

static __global__ void excluded_lane(int * y) {
    y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, (int) threadIdx.x, 1);
}

static __global__ void undefined_source(float * y) {
    if (threadIdx.x < 16) {
        y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 16);
    }
}

static __global__ void shared_overrun(int * y) {
    __shared__ int staged[N_THREADS];
    staged[threadIdx.x + 1] = 1;
    __syncthreads();
    y[threadIdx.x] = staged[threadIdx.x];
}

static __global__ void dynamic_overrun(int * y) {
    extern __shared__ int staged[];
    staged[threadIdx.x + 1] = 1;
    __syncthreads();
    y[threadIdx.x] = staged[threadIdx.x];
}

static __global__ void device_overrun(int * y) {
    y[threadIdx.x + 1] = 1;
}

static __global__ void misaligned_load(int * y) {
    *(int4 *) (y + 4 * threadIdx.x) = *(const int4 *) (y + 1);
}

static __global__ void endless_poll(int * y) {
    while (atomicAdd(y, 0) >= 0) {
        __nanosleep(20);
    }
}

static __global__ void copy_bytes(char * y, const char * x) {
    y[threadIdx.x] = x[threadIdx.x];
}

// A page of a new file, which is gone when the program ends; kernels shall not see it.
static const char * mapped_file(std::string name) {
    const int file = mkstemp(&name[0]);
    if (file < 0 || unlink(name.c_str()) != 0 || ftruncate(file, 4096) != 0 || setenv("CUEMU_HIDE", name.c_str(), 1) != 0) {
        abort();
    }
    return (const char *) mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, file, 0);
}

static int run_fault(const std::string & fault) {
    device_array<int>   ints(std::vector<int>(N_THREADS, 0));
    device_array<float> floats(random_values(4 * N_THREADS)), sums(std::vector<float>(4));
    if (fault == "race") {
        block_sum<true><<<4, N_THREADS>>>(floats.data, sums.data, N_THREADS);
    } else if (fault == "race-between-blocks") {
        device_array<int> flags(std::vector<int>(8, 0)), n_came(std::vector<int>(1, 0));
        chain<true><<<8, 32>>>(ints.data, flags.data, n_came.data);
    } else if (fault == "divergent-barrier") {
        divergent_barrier<<<1, 32>>>(ints.data);
    } else if (fault == "missed-shuffle") {
        missed_shuffle<<<1, 32>>>(ints.data);
    } else if (fault == "different-masks") {
        different_masks<<<1, 32>>>(ints.data);
    } else if (fault == "excluded-lane") {
        excluded_lane<<<1, 32>>>(ints.data);
    } else if (fault == "shared-overrun") {
        shared_overrun<<<1, N_THREADS>>>(ints.data);
    } else if (fault == "dynamic-overrun") {
        dynamic_overrun<<<1, N_THREADS, N_THREADS * sizeof(int)>>>(ints.data);
    } else if (fault == "device-overrun") {
        device_overrun<<<1, N_THREADS>>>(ints.data);
    } else if (fault == "host-access") {
        ints.data[0] = 1;
    } else if (fault == "other-device") {
        cudaSetDevice(1);
        device_overrun<<<1, 32>>>(ints.data);
    } else if (fault == "hidden-file") {
        const char * file = mapped_file("cuemu-hidden-XXXXXX");
        copy_bytes<<<1, 32>>>((char *) ints.data, file);
    } else if (fault == "misaligned-load") {
        misaligned_load<<<1, 32>>>(ints.data);
    } else if (fault == "endless-poll") {
        endless_poll<<<1, 32>>>(ints.data);
    } else if (fault == "too-many-threads") {
        device_overrun<<<1, 1025>>>(ints.data);
    } else {
        fprintf(stderr, "no such fault: %s\n", fault.c_str());
        return 2;
    }
    return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1; // 0 means that nobody noticed.
}

static void test_block_sum() {
    check::begin("block_sum");
    const int                n_blocks = 5, n = 1037;
    const std::vector<float> x = random_values((size_t) (n_blocks * n));
    device_array<float>      dx(x), dy(std::vector<float>((size_t) n_blocks));
    block_sum<false><<<n_blocks, N_THREADS>>>(dx.data, dy.data, n);
    const std::vector<float> y = dy.read();
    for (int b = 0; b < n_blocks; b++) {
        double sum = 0.0;
        for (int i = 0; i < n; i++) {
            sum += x[(size_t) (b * n + i)];
        }
        CHECK(std::fabs(sum - y[(size_t) b]) < n * 6e-8 * n); // There are n roundings of sums below n.
    }
}

static void test_compact() {
    check::begin("compact");
    const int        n = 1000, n_threads = 200; // The last warp of a block is partial.
    std::vector<int> x;
    for (float v : random_values((size_t) n)) {
        x.push_back((int) (v * 100.0f));
    }
    device_array<int> dx(x), dy(std::vector<int>((size_t) n, 0)), count(std::vector<int>(1, 0)), prefix(std::vector<int>((size_t) n, 0));
    compact<<<(n + n_threads - 1) / n_threads, n_threads, n_threads * sizeof(int)>>>(dx.data, dy.data, count.data, prefix.data, n);
    int                    n_positive = 0, sum_positive = 0, wrong = 0;
    const std::vector<int> sums = prefix.read(), moved = dy.read();
    for (int i = 0; i < n; i++) {
        n_positive += x[(size_t) i] > 0;
        sum_positive += x[(size_t) i] > 0 ? x[(size_t) i] : 0;
        int sum = 0;
        for (int j = i - i % n_threads % 32; j <= i; j++) {
            sum += x[(size_t) j];
        }
        wrong += sum != sums[(size_t) i];
    }
    for (int i = 0; i < n_positive; i++) {
        sum_positive -= moved[(size_t) i];
    }
    CHECK(wrong == 0);
    CHECK(count.read()[0] == n_positive);
    CHECK(sum_positive == 0);
}

static void test_dot_bytes() {
    check::begin("dp4a");
    std::vector<int4>   a, b;
    std::vector<int8_t> bytes;
    for (float v : random_values(2 * 32 * 16)) {
        bytes.push_back((int8_t) (v * 128.0f));
    }
    a.resize(32);
    b.resize(32);
    memcpy((void *) a.data(), bytes.data(), 512);
    memcpy((void *) b.data(), bytes.data() + 512, 512);
    device_array<int4> da(a), db(b);
    device_array<int>  out(std::vector<int>(32));
    dot_bytes<<<1, 32>>>(da.data, db.data, out.data);
    for (size_t t = 0; t < 32; t++) {
        int sum = 0;
        for (size_t j = 16 * t; j < 16 * t + 16; j++) {
            sum += bytes[j] * bytes[512 + j];
        }
        CHECK(out.read()[t] == sum);
    }
}

static void test_half() {
    check::begin("half");
    std::vector<unsigned short> all;
    for (unsigned bits = 0; bits < 65536; bits++) {
        all.push_back((unsigned short) bits);
    }
    device_array<unsigned short> in(all), back(all);
    device_array<float>          wide(std::vector<float>(all.size()));
    convert_half<<<256, 256>>>(in.data, wide.data, back.data);
    const std::vector<float>          values = wide.read();
    const std::vector<unsigned short> again  = back.read();
    int                               wrong  = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        const unsigned exponent = bits >> 10 & 31, mantissa = bits & 1023;
        if (exponent == 31) {
            wrong += !(mantissa ? std::isnan(values[bits]) : std::isinf(values[bits]));
            continue;
        }
        const double magnitude = exponent ? std::ldexp(1024 + mantissa, (int) exponent - 25) : std::ldexp(mantissa, -24);
        wrong += values[bits] != (bits & 0x8000 ? -magnitude : magnitude) || again[bits] != bits;
    }
    CHECK(wrong == 0);
}

static void test_chain() {
    check::begin("blocks that wait for each other");
    device_array<int> values(std::vector<int>(8, 0)), flags(std::vector<int>(8, 0)), n_came(std::vector<int>(1, 0));
    chain<false><<<8, 32>>>(values.data, flags.data, n_came.data);
    CHECK(values.read().back() == 8);
}

static void test_undefined_source() {
    check::begin("a shuffle from a lane that takes no part gives NaN");
    device_array<float> y(std::vector<float>(32, 0.0f));
    undefined_source<<<1, 32>>>(y.data);
    CHECK(std::isnan(y.read()[0]));
}

int main(int argc, char ** argv) {
    if (argc > 1) {
        return run_fault(argv[1]);
    }
    test_block_sum();
    test_compact();
    test_dot_bytes();
    test_half();
    test_chain();
    test_undefined_source();
    return check::finish();
}
