// sync.h: barriers and operations of a warp. A fiber enters with what it brings and waits; the last one to come computes everyone's result.
#pragma once

#include "fibers.h"

#include <algorithm>
#include <type_traits>

namespace cuemu {

// It is NaN as float and as double. A shuffle from a lane outside the mask gives it.
constexpr uint64_t UNDEFINED = 0x7fffdead7fffdeadu;

// Everyone alive has come to __syncthreads.
inline void finish_barrier(block & b) {
    int line = -1;
    for (int i = 0; i < b.n; i++) {
        const fiber & f = b.fibers[(size_t) i];
        if (!f.done && line >= 0 && line != f.line) {
            fail("divergent __syncthreads: threads of a block wait at different lines");
        }
        line = f.done ? line : f.line;
    }
    for (int i = 0; i < b.n; i++) {
        if (!b.fibers[(size_t) i].done) {
            b.fibers[(size_t) i].result = (uint64_t) b.n_true;
            make_ready(b.fibers[(size_t) i]);
        }
    }
    b.n_at_barrier = b.n_true = 0;
}

// Returns how many threads brought a true predicate.
inline int barrier(bool predicate, int line) {
    unwatched quiet;
    fiber &   me = *the_machine().current;
    block &   b  = *me.of;
    me.op        = SYNCTHREADS;
    me.line      = line;
    b.n_true += predicate;
    release(&b.n_at_barrier);
    if (++b.n_at_barrier == b.n_alive) {
        finish_barrier(b);
    }
    wait();
    acquire(&b.n_at_barrier);
    return (int) me.result;
}

inline uint64_t reduce(operation op, uint64_t a, uint64_t b) {
    switch (op) {
        case REDUCE_ADD: return (uint32_t) (a + b);
        case REDUCE_MIN: return (uint64_t) std::min((int64_t) a, (int64_t) b);
        case REDUCE_MAX: return (uint64_t) std::max((int64_t) a, (int64_t) b);
        case REDUCE_AND: return a & b;
        case REDUCE_OR: return a | b;
        default: return a;
    }
}

// All lanes of `mask` have come: they must agree; then each gets its result and goes on.
inline void finish_warp(block & b, int warp, unsigned mask) {
    fiber *  lanes   = &b.fibers[(size_t) warp * 32];
    unsigned ballot  = 0;
    uint64_t reduced = 0;
    bool     first   = true;
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) {
            continue;
        }
        if ((lanes[i].mask & b.alive[(size_t) warp]) != mask) {
            fail("lanes of one warp operation name different masks");
        }
        if (lanes[i].op != lanes[__builtin_ctz(mask)].op) {
            fail("lanes of one mask are in different warp operations");
        }
        ballot |= (unsigned) (lanes[i].value != 0) << i;
        reduced = first ? lanes[i].value : reduce(lanes[i].op, reduced, lanes[i].value);
        first   = false;
    }
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) {
            continue;
        }
        fiber & f = lanes[i];
        f.result  = reduced;
        if (f.op == SHUFFLE) {
            f.result = mask >> f.source & 1 ? lanes[f.source].value : UNDEFINED;
        } else if (f.op == BALLOT) {
            f.result = ballot;
        } else if (f.op == MATCH) {
            f.result = 0;
            for (int j = 0; j < 32; j++) {
                f.result |= (uint64_t) ((mask >> j & 1) && lanes[j].value == f.value) << j;
            }
        }
    }
    b.arrived[(size_t) warp] &= ~mask;
    for (int i = 0; i < 32; i++) {
        if (mask >> i & 1) {
            make_ready(lanes[i]);
        }
    }
}

inline uint64_t warp_operation(operation op, unsigned mask, uint64_t value, int source, int line) {
    unwatched quiet;
    fiber &   me   = *the_machine().current;
    block &   b    = *me.of;
    const int warp = me.id / 32;
    me.op          = op;
    me.mask        = mask;
    me.value       = value;
    me.source      = source;
    me.line        = line;
    if (!(mask >> (me.id % 32) & 1)) {
        fail("a lane calls a warp operation whose mask leaves it out");
    }
    unsigned & arrived = b.arrived[(size_t) warp];
    arrived |= 1u << (me.id % 32);
    if (op == SYNCWARP) { // It is the only one that orders memory.
        release(&arrived);
    }
    const unsigned wanted = mask & b.alive[(size_t) warp];
    if ((arrived & wanted) == wanted) {
        finish_warp(b, warp, wanted);
    }
    wait();
    if (op == SYNCWARP) {
        acquire(&arrived);
    }
    return me.result;
}

// A thread has left the kernel: those that wait no longer wait for it.
inline void leave(fiber & me) {
    block &   b    = *me.of;
    const int warp = me.id / 32;
    me.done        = true;
    b.n_alive--;
    b.alive[(size_t) warp] &= ~(1u << (me.id % 32));
    if (b.n_alive > 0 && b.n_at_barrier == b.n_alive) {
        finish_barrier(b);
    }
    const unsigned arrived = b.arrived[(size_t) warp];
    if (arrived) {
        const unsigned wanted = b.fibers[(size_t) warp * 32 + (size_t) __builtin_ctz(arrived)].mask & b.alive[(size_t) warp];
        if (wanted && (arrived & wanted) == wanted) {
            finish_warp(b, warp, wanted);
        }
    }
}

template <typename T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "warp operations take 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(value));
    return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

inline int lane() {
    return the_machine().current->id % 32;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
    return from_bits<T>(warp_operation(SHUFFLE, mask, to_bits(value), source, line));
}

} // namespace cuemu

#define CUEMU_LINE int line = __builtin_LINE() // As a default argument, it is the caller's line.

inline void __syncthreads(CUEMU_LINE) {
    cuemu::barrier(false, line);
}
inline int __syncthreads_or(int predicate, CUEMU_LINE) {
    return cuemu::barrier(predicate != 0, line) > 0;
}
inline int __syncthreads_and(int predicate, CUEMU_LINE) {
    return cuemu::barrier(predicate == 0, line) == 0;
}
inline int __syncthreads_count(int predicate, CUEMU_LINE) {
    return cuemu::barrier(predicate != 0, line);
}
inline void __syncwarp(unsigned mask = ~0u, CUEMU_LINE) {
    cuemu::warp_operation(cuemu::SYNCWARP, mask, 0, 0, line);
}

// Shuffles stay within groups of `width` lanes; a source outside of it is the lane itself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUEMU_LINE) {
    return cuemu::shuffle(mask, value, (cuemu::lane() & ~(width - 1)) | (source & (width - 1)), line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUEMU_LINE) {
    const int source = cuemu::lane() ^ bits;
    return cuemu::shuffle(mask, value, source / width > cuemu::lane() / width ? cuemu::lane() : source, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, CUEMU_LINE) {
    const int source = cuemu::lane() - (int) distance;
    return cuemu::shuffle(mask, value, source < (cuemu::lane() & ~(width - 1)) ? cuemu::lane() : source, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, CUEMU_LINE) {
    const int source = cuemu::lane() + (int) distance;
    return cuemu::shuffle(mask, value, source > (cuemu::lane() | (width - 1)) ? cuemu::lane() : source, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUEMU_LINE) {
    return (unsigned) cuemu::warp_operation(cuemu::BALLOT, mask, predicate != 0, 0, line);
}
inline int __any_sync(unsigned mask, int predicate, CUEMU_LINE) {
    return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUEMU_LINE) {
    return __ballot_sync(mask, predicate == 0, line) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CUEMU_LINE) {
    return (unsigned) cuemu::warp_operation(cuemu::MATCH, mask, cuemu::to_bits(value), 0, line);
}
inline int __reduce_add_sync(unsigned mask, int value, CUEMU_LINE) {
    return (int) cuemu::warp_operation(cuemu::REDUCE_ADD, mask, (unsigned) value, 0, line);
}
inline int __reduce_min_sync(unsigned mask, int value, CUEMU_LINE) {
    return (int) cuemu::warp_operation(cuemu::REDUCE_MIN, mask, (uint64_t) (int64_t) value, 0, line);
}
inline int __reduce_max_sync(unsigned mask, int value, CUEMU_LINE) {
    return (int) cuemu::warp_operation(cuemu::REDUCE_MAX, mask, (uint64_t) (int64_t) value, 0, line);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, CUEMU_LINE) {
    return (unsigned) cuemu::warp_operation(cuemu::REDUCE_AND, mask, value, 0, line);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CUEMU_LINE) {
    return (unsigned) cuemu::warp_operation(cuemu::REDUCE_OR, mask, value, 0, line);
}
inline unsigned __activemask() {
    const cuemu::fiber & me = *cuemu::the_machine().current;
    return me.of->alive[(size_t) me.id / 32];
}
