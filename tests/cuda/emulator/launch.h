// launch.h: a launch: blocks in waves, their threads and their shared memory.
#pragma once

#include "memory.h"
#include "sync.h"

#include <functional>

namespace cuemu {

inline void * map_memory(size_t n_bytes) {
    void * p = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("cuemu: mmap");
        abort();
    }
    return p;
}

// Takes a piece of the block's shared memory, with a red zone behind it. It holds garbage, as on a GPU.
inline char * take_shared(block & b, size_t n_bytes) {
    char * p = b.shared + b.shared_used;
    b.shared_used += (n_bytes + RED_ZONE - 1) / RED_ZONE * RED_ZONE + RED_ZONE;
    if (b.shared_used > SHARED_BYTES) {
        fail("too much shared memory");
    }
    unpoison(p, n_bytes);
    memset(p, 0xA5, n_bytes);
    return p;
}

// Returns the block's variable of this key: what `__shared__ T name` becomes.
template <typename T>
T & shared(const char * key) {
    unwatched quiet;
    block &   b = *the_machine().current->of;
    for (const auto & v : b.variables) {
        if (v.first == key) {
            return *(T *) v.second;
        }
    }
    b.variables.emplace_back(key, take_shared(b, sizeof(T)));
    return *(T *) b.variables.back().second;
}

// Returns how much dynamic shared memory a launch may ask for: more than 48 KiB only after cudaFuncSetAttribute, here of any kernel.
inline size_t & dynamic_limit() {
    static size_t n_bytes = 48 * 1024;
    return n_bytes;
}

inline void * dynamic_shared() {
    return the_machine().current->of->dynamic;
}

[[noreturn]] inline void run_fiber() {
    machine & m = the_machine();
#if defined(__SANITIZE_ADDRESS__)
    const void * stack;
    size_t       n_bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &n_bytes);
    if (!m.host_stack) { // The first fiber of all comes from the host.
        m.host_stack       = stack;
        m.host_stack_bytes = n_bytes;
    }
#endif
    (*m.body)();
    unwatched quiet;
    fiber &   me = *m.current;
    leave(me);
    release(&m.host);
    fiber * next = take_ready();
    if (!next) {
        for (const auto & b : m.blocks) {
            if (b->n_alive > 0) {
                fail("deadlock: every thread waits");
            }
        }
    }
    jump(next ? *next : m.host, true);
    __builtin_unreachable();
}

inline void start_fiber(block & b, int i) {
    fiber & f = b.fibers[(size_t) i];
    if (!f.stack) {
        f.stack = (char *) map_memory(STACK_BYTES);
    }
    unpoison(f.stack, STACK_BYTES);
    prepare_stack(f, run_fiber);
    f.of     = &b;
    f.id     = i;
    f.done   = false;
    f.op     = RUNNING;
    f.thread = { (unsigned) i % blockDim.x, (unsigned) i / blockDim.x % blockDim.y, (unsigned) i / (blockDim.x * blockDim.y) };
    b.alive[(size_t) i / 32] |= 1u << (i % 32);
    make_ready(f);
#if defined(__SANITIZE_THREAD__)
    if (!f.tsan) { // It is kept from launch to launch, because making one takes about a millisecond.
        f.tsan = __tsan_create_fiber(0);
    }
    __tsan_switch_to_fiber(f.tsan, 0); // The launch happens before the thread's first step.
    __tsan_switch_to_fiber(the_machine().host.tsan, __tsan_switch_to_fiber_no_sync);
#endif
}

inline void start_block(block & b, uint3 index, int n, size_t dynamic_bytes) {
    b.index        = index;
    b.n            = n;
    b.n_alive      = n;
    b.n_at_barrier = b.n_true = 0;
    if ((int) b.fibers.size() < n) { // No fiber of it runs, so they may move.
        b.fibers.resize((size_t) n);
    }
    b.arrived.assign((size_t) (n + 31) / 32, 0);
    b.alive.assign((size_t) (n + 31) / 32, 0);
    if (!b.shared) {
        b.shared = (char *) map_memory(SHARED_BYTES);
    }
    poison(b.shared, SHARED_BYTES);
    b.shared_used = 0;
    b.variables.clear();
    b.dynamic = take_shared(b, dynamic_bytes);
    for (int i = 0; i < n; i++) {
        start_fiber(b, i);
    }
}

inline void read_order(machine & m) {
    const char * order = getenv("CUEMU_ORDER");
    m.order            = machine::FORWARD;
    if (!order || !strcmp(order, "fwd")) {
        return;
    }
    if (!strcmp(order, "rev")) {
        m.order = machine::REVERSE;
    } else if (!strncmp(order, "rand:", 5)) {
        m.order  = machine::RANDOM;
        m.random = strtoull(order + 5, nullptr, 10) + 1;
    } else {
        fprintf(stderr, "cuemu: CUEMU_ORDER is fwd, rev or rand:SEED, not %s\n", order);
        abort();
    }
}

// What `kernel<<<grid, threads, dynamic_bytes, stream>>>(...)` becomes, with the call as a function.
struct launch {
    dim3   grid, threads;
    size_t dynamic_bytes;

    launch(dim3 grid_, dim3 threads_, size_t dynamic_bytes_ = 0, const void * /*stream*/ = nullptr) :
        grid(grid_), threads(threads_), dynamic_bytes(dynamic_bytes_) {}

    void operator<<(const std::function<void()> & body) const {
        const computing memory;
        unwatched       quiet;
        const int       n     = (int) (threads.x * threads.y * threads.z);
        const uint64_t  total = (uint64_t) grid.x * grid.y * grid.z;
        if (n < 1 || n > 1024 || threads.z > 64 || total == 0 || grid.y > 65535 || grid.z > 65535 || dynamic_bytes > dynamic_limit()) {
            fprintf(stderr, "cuemu: bad launch: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory\n", grid.x, grid.y, grid.z,
                    threads.x, threads.y, threads.z, dynamic_bytes);
            abort();
        }
        machine &    m          = the_machine();
        const char * resident   = getenv("CUEMU_RESIDENT");
        const size_t n_resident = resident ? (size_t) std::max(1, atoi(resident)) : 1;
        while (m.blocks.size() < n_resident) {
            m.blocks.push_back(std::make_unique<block>());
        }
        m.body = &body;
        read_order(m);
        gridDim  = { grid.x, grid.y, grid.z };
        blockDim = { threads.x, threads.y, threads.z };
        for (uint64_t i = 0; i < total; i += n_resident) {
            run_wave(m, i, std::min<uint64_t>(n_resident, total - i), total, n);
        }
    }

private:
    void run_wave(machine & m, uint64_t first, uint64_t n_blocks, uint64_t total, int n) const {
#if defined(__SANITIZE_THREAD__)
        m.host.tsan = __tsan_get_current_fiber();
#endif
        m.current = &m.host;
        for (const auto & b : m.blocks) {
            b->n = 0;
        }
        for (uint64_t k = 0; k < n_blocks; k++) {
            const uint64_t i = m.order == machine::REVERSE ? total - 1 - (first + k) : first + k;
            start_block(*m.blocks[k],
                        { (unsigned) (i % grid.x), (unsigned) (i / grid.x % grid.y), (unsigned) (i / ((uint64_t) grid.x * grid.y)) }, n,
                        dynamic_bytes);
        }
        jump(*take_ready());
        acquire(&m.host);
    }
};

} // namespace cuemu
