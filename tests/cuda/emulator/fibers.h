// fibers.h: fibers, the blocks that they belong to, and who runs next.
#pragma once

#include "sanitizers.h"
#include "types.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <sys/mman.h>

#if !defined(CUEMU_OWN_SWITCH) && defined(__x86_64__)
// It does without the system calls of swapcontext, which other processors take.
#define CUEMU_OWN_SWITCH 1
#endif
#if !CUEMU_OWN_SWITCH
#include <ucontext.h>
#endif

namespace cuemu {

constexpr size_t   STACK_BYTES  = 128 * 1024;
constexpr size_t   SHARED_BYTES = 256 * 1024; // bytes of a block: what CUDA allows, with room for red zones
constexpr size_t   RED_ZONE     = 128;
constexpr unsigned MAX_SPINS    = 10 * 1000 * 1000; // It counts __nanosleep in a row by fibers that find nothing to do.

// What a fiber waits in.
enum operation { RUNNING, SYNCTHREADS, SYNCWARP, SHUFFLE, BALLOT, REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_AND, REDUCE_OR, MATCH };

inline const char * name_of(operation op) {
    static const char * const names[] = { "running",           "__syncthreads",     "__syncwarp",        "__shfl_sync",
                                          "__ballot_sync",     "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                          "__reduce_and_sync", "__reduce_or_sync",  "__match_any_sync" };
    return names[op];
}

struct block;

struct fiber {
    block *   of    = nullptr;
    char *    stack = nullptr; // It has STACK_BYTES.
    uint3     thread{};
    int       id     = 0; // number in its block
    operation op     = RUNNING;
    int       line   = 0; // source line of the operation
    unsigned  mask   = 0;
    int       source = 0; // SHUFFLE: source lane
    uint64_t  value = 0, result = 0;
    bool      done = false;
    void *    tsan = nullptr;
#if CUEMU_OWN_SWITCH
    void * sp = nullptr;
#else
    ucontext_t context;
#endif
};

struct block {
    uint3              index{};
    std::vector<fiber> fibers;
    int                n = 0, n_alive = 0;
    // They count the threads that came to __syncthreads, and those whose predicate is true.
    int n_at_barrier = 0, n_true = 0;
    // They have a bit for each lane of a warp: those in a warp operation, and those that have not exited.
    std::vector<unsigned>                        arrived, alive;
    char *                                       shared      = nullptr; // It has SHARED_BYTES.
    size_t                                       shared_used = 0;
    char *                                       dynamic     = nullptr;
    std::vector<std::pair<const void *, char *>> variables; // They are the static __shared__ variables: key and place.
};

// The one multiprocessor: blocks that run side by side, and the fibers that can go on.
struct machine {
    std::vector<std::unique_ptr<block>> blocks;
    std::vector<fiber *>                ready; // Those from `head` on can go on.
    size_t                              head    = 0;
    fiber *                             current = nullptr;
    fiber                               host; // It is the one that launched.
    const std::function<void()> *       body = nullptr;
    enum { FORWARD, REVERSE, RANDOM } order  = FORWARD;
    uint64_t     random                      = 0;
    unsigned     n_spins                     = 0;
    const void * host_stack                  = nullptr; // ASan needs to know it.
    size_t       host_stack_bytes            = 0;
};

inline machine & the_machine() {
    static machine & m = *new machine; // It is never freed, because its fibers never end.
    return m;
}

[[noreturn]] inline void fail(const char * why) {
    fprintf(stderr, "cuemu: %s\n", why);
    for (const auto & b : the_machine().blocks) {
        const fiber * before = nullptr;
        for (int i = 0; i < b->n; i++) { // Each run of threads that wait alike gets a line.
            const fiber & f = b->fibers[(size_t) i];
            if (!before || f.done != before->done || f.op != before->op || f.line != before->line) {
                fprintf(stderr, "  block (%u,%u,%u) from thread %d (warp %d, lane %d): %s, line %d, mask %08x\n", b->index.x, b->index.y,
                        b->index.z, i, i / 32, i % 32, f.done ? "exited" : name_of(f.op), f.line, f.mask);
            }
            before = &f;
        }
    }
    fflush(stderr);
    abort();
}

#if CUEMU_OWN_SWITCH
// Saves the registers that a call keeps on this stack, and takes those of the other.
__attribute__((naked, noinline, no_sanitize("thread", "address"))) inline void switch_stack(void ** /*save_sp*/, void * /*load_sp*/) {
    asm volatile("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
                 "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
                 "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
inline void prepare_stack(fiber & f, void (*entry)()) {
    void ** top = (void **) (f.stack + STACK_BYTES) - 2;
    top[0]      = (void *) entry;
    top[1]      = nullptr;
    f.sp        = top - 6; // Six registers lie below the return address.
}
inline void switch_fiber(fiber & from, fiber & to) {
    switch_stack(&from.sp, to.sp);
}
#else
inline void prepare_stack(fiber & f, void (*entry)()) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp   = f.stack;
    f.context.uc_stack.ss_size = STACK_BYTES;
    f.context.uc_link          = nullptr;
    makecontext(&f.context, entry, 0);
}
inline void switch_fiber(fiber & from, fiber & to) {
    swapcontext(&from.context, &to.context);
}
#endif

// Returns the next fiber that can go on, or null.
inline fiber * take_ready() {
    machine &    m    = the_machine();
    const size_t left = m.ready.size() - m.head;
    if (left == 0) {
        return nullptr;
    }
    fiber * next;
    if (m.order == machine::FORWARD) {
        next = m.ready[m.head++];
    } else {
        if (m.order == machine::RANDOM) {
            m.random = m.random * 6364136223846793005u + 1442695040888963407u;
            std::swap(m.ready[m.head + (m.random >> 33) % left], m.ready.back());
        }
        next = m.ready.back();
        m.ready.pop_back();
    }
    if (m.head == m.ready.size()) {
        m.ready.clear();
        m.head = 0;
    }
    return next;
}

// Leaves the current fiber for `to`; the host is a fiber too.
inline void jump(fiber & to, [[maybe_unused]] bool dying = false) {
    machine & m  = the_machine();
    fiber &   me = *m.current;
    m.current    = &to;
    if (to.of) {
        threadIdx = to.thread;
        blockIdx  = to.of->index;
    }
#if defined(__SANITIZE_ADDRESS__)
    void * fake = nullptr;
    __sanitizer_start_switch_fiber(dying ? nullptr : &fake, to.of ? to.stack : m.host_stack, to.of ? STACK_BYTES : m.host_stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
    if (dying) {
        unwatched::end();
    }
    // A switch orders nothing, so that races stay visible.
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    switch_fiber(me, to);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// Lets others run until this fiber is made ready again.
inline void wait() {
    fiber * next = take_ready();
    if (!next) {
        fail("deadlock: every thread waits");
    }
    if (next != the_machine().current) {
        jump(*next);
    }
}

inline void make_ready(fiber & f) {
    f.op                  = RUNNING;
    the_machine().n_spins = 0;
    the_machine().ready.push_back(&f);
}

// Lets every other fiber run first. A kernel that polls memory has to call it (as __nanosleep), or it polls for ever.
inline void yield() {
    unwatched quiet;
    machine & m = the_machine();
    if (++m.n_spins > MAX_SPINS) {
        fail("every thread polls for ever");
    }
    m.ready.insert(m.ready.begin() + (m.order == machine::REVERSE ? (ptrdiff_t) m.head : (ptrdiff_t) m.ready.size()), m.current);
    wait();
}

} // namespace cuemu
