// emulated-node.h: runs a node of the op DQRELO with each of its tensors in memory of its own.
#pragma once

#include "ggml.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

struct heap_block {
    void * data;
    explicit heap_block(size_t n_bytes) : data(malloc(n_bytes)) {
        memset(data, 0x7B, n_bytes);
    } // As integers and as floats these bytes are far above all that is right.
    ~heap_block() { free(data); }
    heap_block(const heap_block &)             = delete;
    heap_block & operator=(const heap_block &) = delete;
};

// Calls forward() on a node. Its tensors move to memory of exactly their size, so that a sanitizer sees an access behind them; the result
// lies in memory that the caller frees.
template <typename F>
void run_node(ggml_tensor * dst, F forward) {
    std::vector<std::unique_ptr<heap_block>> blocks;
    for (int i = -1; i < GGML_MAX_SRC; i++) {
        ggml_tensor * t = i < 0 ? dst : dst->src[i];
        if (t) {
            blocks.push_back(std::make_unique<heap_block>(ggml_nbytes(t)));
            if (i >= 0) {
                memcpy(blocks.back()->data, t->data, ggml_nbytes(t));
            }
            t->data = blocks.back()->data;
        }
    }
    forward();
    void * kept = malloc(ggml_nbytes(dst)); // The blocks end here.
    memcpy(kept, dst->data, ggml_nbytes(dst));
    dst->data = kept;
}
