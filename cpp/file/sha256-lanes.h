// sha256-lanes.h: many messages at a time, word i of all of them in one vector. Only for the files of such kernels, which define
// SHA256_INLINE, the attributes of a function that has their instructions, and a type that wraps these. It has
//
//   words                         a vector of a word of each message
//   N_LANES                       how many those are
//   load(w, lanes, at_bytes)      sets w to the 16 words of a block of each message, lane l's in element l
//   load_row, store_row           a vector from and to N_LANES uint32_t in memory
//   set, add, shift_right<N>, rotate_right<N>
//   xor3, choose, majority        bit by bit; the latter two as in FIPS 180-4, section 4.1.2
//
// Nothing here may get a symbol of its own, since each file compiles it with other instructions.
#pragma once

#include "file/sha256-kernels.h"

namespace dqrelo {

// Section 4.1.2: the word of the schedule that follows from those 16, 15, 7 and 2 places before it.
template <typename V>
SHA256_INLINE typename V::words next_word(typename V::words w16, typename V::words w15, typename V::words w7, typename V::words w2) {
    const typename V::words of_w15 =
        V::xor3(V::template rotate_right<7>(w15), V::template rotate_right<18>(w15), V::template shift_right<3>(w15));
    const typename V::words of_w2 =
        V::xor3(V::template rotate_right<17>(w2), V::template rotate_right<19>(w2), V::template shift_right<10>(w2));
    return V::add(V::add(w16, of_w15), V::add(w7, of_w2));
}

// Section 6.2.2, 16 rounds of it. s has the words a to h: instead of moving them on, round i takes them i places further on.
template <typename V, bool IS_FIRST>
SHA256_INLINE void add_rounds(typename V::words (&s)[8], typename V::words (&w)[16], const uint32_t * k) {
    using words = typename V::words;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        if (!IS_FIRST) {
            w[i] = next_word<V>(w[i], w[(i + 1) % 16], w[(i + 9) % 16], w[(i + 14) % 16]);
        }
        const words a = s[(16 - i) % 8], b = s[(17 - i) % 8], c = s[(18 - i) % 8];
        const words e = s[(20 - i) % 8], f = s[(21 - i) % 8], g = s[(22 - i) % 8];
        words &     d        = s[(19 - i) % 8];
        words &     h        = s[(23 - i) % 8];
        const words sum_of_e = V::xor3(V::template rotate_right<6>(e), V::template rotate_right<11>(e), V::template rotate_right<25>(e));
        const words sum_of_a = V::xor3(V::template rotate_right<2>(a), V::template rotate_right<13>(a), V::template rotate_right<22>(a));
        h                    = V::add(V::add(h, V::add(w[i], V::set(k[i]))), V::add(sum_of_e, V::choose(e, f, g)));
        d                    = V::add(d, h);
        h                    = V::add(h, V::add(sum_of_a, V::majority(a, b, c)));
    }
}

// The next n_blocks of n_lanes messages. Lanes beyond them do the first one's once more.
template <typename V>
SHA256_INLINE void update_lanes(const sha256_lane * lanes, size_t n_lanes, size_t n_blocks) {
    using words = typename V::words;
    const uint8_t *      data[V::N_LANES];
    alignas(64) uint32_t rows[8][V::N_LANES]; // word i of all states
    for (size_t l = 0; l < V::N_LANES; ++l) {
        const sha256_lane & lane = lanes[l < n_lanes ? l : 0];
        data[l]                  = lane.data;
        for (int i = 0; i < 8; ++i) {
            rows[i][l] = lane.state[i];
        }
    }
    words s[8];
    for (int i = 0; i < 8; ++i) {
        s[i] = V::load_row(rows[i]);
    }
    for (size_t at_bytes = 0; at_bytes < n_blocks * SHA256_BLOCK_BYTES; at_bytes += SHA256_BLOCK_BYTES) {
        words before[8];
        words w[16];
        for (int i = 0; i < 8; ++i) {
            before[i] = s[i];
        }
        V::load(w, data, at_bytes);
        add_rounds<V, true>(s, w, SHA256_K);
        for (int i = 16; i < 64; i += 16) {
            add_rounds<V, false>(s, w, SHA256_K + i);
        }
        for (int i = 0; i < 8; ++i) {
            s[i] = V::add(s[i], before[i]);
        }
    }
    for (int i = 0; i < 8; ++i) {
        V::store_row(rows[i], s[i]);
    }
    for (size_t l = 0; l < n_lanes; ++l) {
        for (int i = 0; i < 8; ++i) {
            lanes[l].state[i] = rows[i][l];
        }
    }
}

} // namespace dqrelo
