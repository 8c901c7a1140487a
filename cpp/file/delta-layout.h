// delta-layout.h: where the tensors of each weight of a delta lie, checked against docs/format.md sections 2 and 4 (items 3-6).
#pragma once

#include "file/delta-file.h"
#include "file/gguf-header.h"

#include <string>
#include <vector>

namespace dqrelo {

// Where one tensor lies inside a weight's pack (the bytes from the weight's first tensor to the end of its last).
struct part_layout {
    bool      present      = false;
    ggml_type type         = GGML_TYPE_F32;
    size_t    offset_bytes = 0; // bytes from the start of the pack
};

struct pack_layout {
    part_layout sign[DQRELO_MAX_PLANES];
    part_layout scale[DQRELO_MAX_PLANES];
    part_layout cscale;
    part_layout u;
    part_layout v;
    part_layout vsign;
    part_layout vscale;
    part_layout usign;
    part_layout uscale;
    part_layout dense;
    part_layout mask;
    part_layout count;
    part_layout column;
    part_layout start;
    part_layout entries;
    part_layout escale;
    int32_t     scale_per_row = 0; // Bit p is set where plane p has a scale per row.
};

// A tensor's declared facts, in file order (dqrelo.tensor.*).
struct declared_tensor {
    std::string type;  // "DQ_SIGN", ...
    uint64_t    ne[4]; // logical shape
    std::string sha256;
};

struct delta_layout {
    std::vector<weight_info>     weights;
    std::vector<pack_layout>     packs;   // Goes with `weights`, in the same order.
    std::vector<declared_tensor> tensors; // Goes with gguf_header::tensors, in the same order.
};

// Reads and checks the arrays of the metadata (whose types check_delta_keys has seen), and every tensor's name, type, shape and place in a
// file of n_file_bytes. Returns false with one line in `err` (without the file's name).
bool read_delta_layout(const gguf_header & header, size_t n_file_bytes, delta_layout & out, std::string & err);

// Returns the entry of a weight whose pack lies at `pack`, which is only added to: it may be an address of another device.
dqrelo_entry entry_of(const weight_info & weight, const pack_layout & layout, const void * pack);

// Returns true for 64 lower-case hex digits.
bool is_sha256_text(const std::string & text);

} // namespace dqrelo
