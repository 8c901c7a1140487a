#include "file/delta-layout.h"

#include "file/delta-keys.h"
#include "file/message.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <functional>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

namespace dqrelo {

namespace {

using shape = std::array<int64_t, 4>;

std::string quoted_tensor(const std::string & name) {
    return "tensor '" + printable(name) + "'";
}

// Dimensions without trailing ones, at least 1.
template <typename T>
int n_dims(const T ne[4]) {
    int n = 4;
    while (n > 1 && ne[n - 1] == 1) {
        --n;
    }
    return n;
}

// Reads an array of the metadata, which is there in its type, and must have n items.
template <typename T>
bool read_array(const gguf_header & header, const char * key, size_t n, std::vector<T> & out, std::string & err) {
    header.get(key, out);
    if (out.size() != n) {
        err = message("metadata key '%s' has %zu items, expected %zu", key, out.size(), n);
        return false;
    }
    return true;
}

bool read_tensors(const gguf_header & header, delta_layout & out, std::string & err) {
    const size_t             n = header.tensors.size();
    std::vector<std::string> names;
    std::vector<std::string> types;
    std::vector<std::string> digests;
    std::vector<uint64_t>    ne;
    if (!read_array(header, "dqrelo.tensor.names", n, names, err) || !read_array(header, "dqrelo.tensor.types", n, types, err) ||
        !read_array(header, "dqrelo.tensor.ne", 4 * n, ne, err) || !read_array(header, "dqrelo.tensor.sha256", n, digests, err)) {
        return false;
    }
    for (size_t i = 0; i < n; ++i) {
        const std::string & name = header.tensors[i].name;
        if (names[i] != name) {
            err = message("dqrelo.tensor.names[%zu] is '%s', but tensor %zu of the file is '%s'", i, printable(names[i]).c_str(), i,
                          printable(name).c_str());
            return false;
        }
        if (!is_sha256_text(digests[i])) {
            err = message("dqrelo.tensor.sha256[%zu] is '%s', expected 64 lower-case hex digits", i, printable(digests[i]).c_str());
            return false;
        }
        declared_tensor tensor;
        tensor.type   = types[i];
        tensor.sha256 = digests[i];
        std::copy_n(&ne[4 * i], 4, tensor.ne);
        out.tensors.push_back(tensor);
    }
    return true;
}

// Reads the shape of a weight: four numbers of the metadata.
bool read_shape(const std::string & weight, const uint64_t ne[4], int64_t out[4], std::string & err) {
    const std::string name = printable(weight);
    if (std::find(ne, ne + 4, 0u) != ne + 4) {
        err = "weight '" + name + "' has the impossible shape " + dims_text(ne, 4);
        return false;
    }
    if (!shape_from(ne, out)) {
        err = name + ": shape " + dims_text(ne, n_dims(ne)) + " has too many elements";
        return false;
    }
    return true;
}

using plane_ranks = std::array<uint32_t, DQRELO_MAX_CODE_PLANES>;

// Whether a weight of this shape can have sign factors of these ranks.
bool check_plane_ranks(const weight_info & weight, const plane_ranks & ranks, std::string & err) {
    const std::string name    = printable(weight.name);
    const int64_t     smaller = std::min(weight.ne[0], weight.ne[1]);
    const uint64_t    n_codes = std::accumulate(ranks.begin(), ranks.end(), (uint64_t) 0);
    if (!std::is_sorted(ranks.begin(), ranks.end(), std::greater<>())) {
        size_t n = ranks.size();
        while (ranks[n - 1] == 0) {
            --n;
        }
        std::string numbers = std::to_string(ranks[0]);
        for (size_t q = 1; q < n; ++q) {
            numbers += ", " + std::to_string(ranks[q]);
        }
        err = name + ": plane ranks " + numbers + " do not descend";
    } else if (ranks[0] > smaller) {
        err = message("%s: plane rank %" PRIu32 ", expected at most %" PRId64 ", the smaller side of %s", name.c_str(), ranks[0], smaller,
                      shape_text(weight.ne).c_str());
    } else if (n_codes % 8 != 0) {
        err = message("%s: %" PRIu64 " codes, expected a multiple of 8", name.c_str(), n_codes);
    } else if (n_codes > (uint64_t) (DQRELO_MAX_CODES_A_SIDE * smaller)) {
        err = message("%s: %" PRIu64 " codes, expected at most %" PRId64 ", four times the smaller side of %s", name.c_str(), n_codes,
                      DQRELO_MAX_CODES_A_SIDE * smaller, shape_text(weight.ne).c_str());
    }
    return err.empty();
}

// How many entries a sparse weight of this shape can have: they are numbered in 32 bits.
uint64_t n_entries_max(const weight_info & weight) {
    return (uint64_t) std::min<int64_t>(weight.ne[0] * weight.ne[1] * weight.ne[2] * weight.ne[3], INT32_MAX);
}

// Whether a weight of this shape can have this rank, these planes, these sign factors and its entries.
bool check_form(const weight_info & weight, uint32_t rank, uint32_t n_planes, const plane_ranks & ranks, std::string & err) {
    const std::string name = printable(weight.name);
    if ((weight.dense && rank != 0) || (weight.n_entries > 0 && (rank != 0 || n_planes != 0 || weight.n_codes > 0))) {
        err = name + ": a " + (weight.dense ? "dense" : "sparse") + " weight has no planes, factors or column scale";
    }
    if (weight.dense || !err.empty()) {
        return err.empty();
    }
    const int dims = n_dims(weight.ne);
    if (dims < 2 || dims > 3 || weight.ne[0] % 8 != 0) {
        err = name + ": shape " + shape_text(weight.ne) +
              " cannot have sign bits, expected 2 or 3 dimensions, rows of a multiple of 8. Store it dense";
    } else if (weight.n_entries > n_entries_max(weight)) {
        err = message("%s: %" PRIu64 " entries, expected 1 to %" PRIu64, name.c_str(), weight.n_entries, n_entries_max(weight));
    } else if (n_planes > DQRELO_MAX_PLANES) {
        err = message("%s: %" PRIu32 " sign planes, expected at most %d", name.c_str(), n_planes, DQRELO_MAX_PLANES);
    } else if (check_plane_ranks(weight, ranks, err) && rank > std::min(weight.ne[0], weight.ne[1])) {
        err = message("%s: rank %" PRIu32 ", expected at most %" PRId64 ", the smaller side of %s", name.c_str(), rank,
                      std::min(weight.ne[0], weight.ne[1]), shape_text(weight.ne).c_str());
    }
    return err.empty();
}

bool read_weights(const gguf_header & header, uint32_t version, delta_layout & out, std::string & err) {
    std::vector<std::string> names;
    header.get("dqrelo.weight.names", names);
    if (names.empty()) {
        err = "changes no weight, expected at least one";
        return false;
    }
    const size_t          n = names.size();
    std::vector<uint64_t> ne;
    std::vector<uint32_t> rank;
    std::vector<uint32_t> n_planes;
    std::vector<uint32_t> all_ranks(DQRELO_MAX_CODE_PLANES * n); // of sign factors
    std::vector<uint64_t> n_entries(n);                          // of sparse weights
    std::vector<float>    error_delta;
    std::vector<float>    error_weight;
    if (!read_array(header, "dqrelo.weight.ne", 4 * n, ne, err) || !read_array(header, "dqrelo.weight.rank", n, rank, err) ||
        !read_array(header, "dqrelo.weight.n_planes", n, n_planes, err) ||
        (version > 1 && !read_array(header, "dqrelo.weight.plane_ranks", all_ranks.size(), all_ranks, err)) ||
        (header.find(KEY_N_ENTRIES) != nullptr && !read_array(header, KEY_N_ENTRIES, n, n_entries, err)) ||
        !read_array(header, "dqrelo.weight.error_delta", n, error_delta, err) ||
        !read_array(header, "dqrelo.weight.error_weight", n, error_weight, err)) {
        return false;
    }
    if (header.find(KEY_N_ENTRIES) != nullptr && std::count(n_entries.begin(), n_entries.end(), 0u) == (ptrdiff_t) n) {
        err = message("metadata key '%s' has zeros only, expected it where a weight is sparse", KEY_N_ENTRIES);
        return false;
    }
    std::unordered_set<std::string> seen;
    for (size_t i = 0; i < n; ++i) {
        weight_info weight = {};
        weight.name        = names[i];
        if (!seen.insert(weight.name).second) {
            err = "weight '" + printable(weight.name) + "' is declared twice";
            return false;
        }
        plane_ranks ranks;
        std::copy_n(&all_ranks[i * ranks.size()], ranks.size(), ranks.begin());
        weight.n_codes   = std::accumulate(ranks.begin(), ranks.end(), (int64_t) 0);
        weight.n_entries = n_entries[i];
        weight.dense     = n_planes[i] == 0 && (version == 1 || (rank[i] == 0 && weight.n_codes == 0 && weight.n_entries == 0));
        if (!read_shape(weight.name, &ne[4 * i], weight.ne, err) || !check_form(weight, rank[i], n_planes[i], ranks, err)) {
            return false;
        }
        std::copy(ranks.begin(), ranks.end(), weight.plane_ranks);
        weight.rank         = (int32_t) rank[i];
        weight.n_planes     = (int32_t) n_planes[i];
        weight.error_delta  = error_delta[i];
        weight.error_weight = error_weight[i];
        out.weights.push_back(weight);
    }
    return true;
}

// A file that needs nothing of version 2 is version 1, so that older readers take it.
bool check_needs_version(const delta_layout & layout, uint32_t version, std::string & err) {
    const auto is_new = [](const weight_info & weight) { return weight.n_codes > 0 || (weight.n_planes == 0 && !weight.dense); };
    if (version > 1 && std::none_of(layout.weights.begin(), layout.weights.end(), is_new)) {
        err = "is version 2 but has nothing that version 1 lacks, expected version 1";
    }
    return err.empty();
}

// Tensors lie in order, without overlap or gap, and the file ends where the last one's padding does. That they lie inside the file is
// checked already.
bool check_order(const gguf_header & header, size_t n_file_bytes, std::string & err) {
    uint64_t expected = 0;
    for (const gguf_tensor_entry & tensor : header.tensors) {
        if (tensor.offset_bytes != expected) {
            err = message("%s %s: begins at byte %" PRIu64 " of the data, expected %" PRIu64, quoted_tensor(tensor.name).c_str(),
                          tensor.offset_bytes < expected ? "overlaps the tensor before it" : "leaves a gap before it", tensor.offset_bytes,
                          expected);
            return false;
        }
        expected = (tensor.offset_bytes + tensor.n_bytes + header.alignment - 1) / header.alignment * header.alignment;
    }
    const uint64_t end = header.data_offset_bytes + expected;
    if (n_file_bytes > end) {
        err = message("has %" PRIu64 " bytes behind its last tensor, expected none", n_file_bytes - end);
    } else if (n_file_bytes < end) {
        err = message("ends %" PRIu64 " bytes before the end of its last tensor's padding. Truncated download?", end - n_file_bytes);
    }
    return err.empty();
}

// Walks the file's tensors weight by weight: each weight takes the tensors that it must have, in their order.
class pack_reader {
public:
    pack_reader(const gguf_header & header, delta_layout & out) : header(header), out(out) {
        for (const gguf_tensor_entry & tensor : header.tensors) {
            types.emplace(tensor.name, tensor.type);
        }
    }

    std::string err;

    bool read_all() {
        for (weight_info & weight : out.weights) {
            pack_layout pack;
            first = next;
            if (!read_weight(weight, pack)) {
                return false;
            }
            const gguf_tensor_entry & last = header.tensors[next - 1];
            weight.offset_bytes            = header.data_offset_bytes + (size_t) header.tensors[first].offset_bytes;
            weight.n_bytes                 = (size_t) (last.offset_bytes - header.tensors[first].offset_bytes) + last.n_bytes;
            out.packs.push_back(pack);
        }
        if (next < header.tensors.size()) {
            err = quoted_tensor(header.tensors[next].name) + " belongs to no declared weight";
            return false;
        }
        return true;
    }

private:
    // What a tensor of a weight must be.
    struct expected_tensor {
        std::string  suffix;
        const char * declared;
        ggml_type    type;
        shape        ne;
        bool         is_bits = false; // The declared shape counts bits, eight a byte.
    };

    const gguf_header &                        header;
    delta_layout &                             out;
    std::unordered_map<std::string, ggml_type> types;     // Holds the types of the file's tensors.
    size_t                                     first = 0; // Numbers the weight's first tensor.
    size_t                                     next  = 0; // Numbers the next tensor to take.

    bool read_weight(const weight_info & weight, pack_layout & pack) {
        if (weight.dense) {
            return read_dense(weight, pack);
        }
        if (weight.n_entries > 0) {
            return read_entries(weight, pack);
        }
        return check_factor_types(weight) && read_signs(weight, pack) && read_factors(weight, pack) && read_codes(weight, pack);
    }

    bool read_signs(const weight_info & weight, pack_layout & pack) {
        const int64_t * ne = weight.ne;
        for (int32_t p = 0; p < weight.n_planes; ++p) {
            const std::string plane = p == 0 ? "" : std::to_string(p);
            if (!take(weight, { ".dq_sign" + plane, "DQ_SIGN", GGML_TYPE_I8, { ne[0] / 8, ne[1], ne[2], 1 }, true }, pack.sign[p])) {
                return false;
            }
            const bool    per_row = has_next(weight, ".dq_scale" + plane) && header.tensors[next].ne[0] != 1;
            const int64_t n_scale = per_row ? ne[1] : 1;
            if (!take(weight, { ".dq_scale" + plane, "DQ_SCALE", GGML_TYPE_F32, { n_scale, ne[2], 1, 1 } }, pack.scale[p])) {
                return false;
            }
            pack.scale_per_row |= per_row ? 1 << p : 0;
        }
        return (weight.n_planes == 0 && weight.n_codes == 0) || types.count(weight.name + ".dq_cscale") == 0 ||
               take(weight, { ".dq_cscale", "DQ_CSCALE", GGML_TYPE_F32, { ne[0], ne[2], 1, 1 } }, pack.cscale);
    }

    bool read_factors(const weight_info & weight, pack_layout & pack) {
        const int64_t * ne = weight.ne;
        return weight.rank == 0 || (take(weight, { ".dq_u", "DQ_U", type_of(weight, ".dq_u"), { weight.rank, ne[1], ne[2], 1 } }, pack.u) &&
                                    take(weight, { ".dq_v", "DQ_V", type_of(weight, ".dq_v"), { ne[0], weight.rank, ne[2], 1 } }, pack.v));
    }

    bool read_codes(const weight_info & weight, pack_layout & pack) {
        const int64_t * ne      = weight.ne;
        const int64_t   n_codes = weight.n_codes;
        return n_codes == 0 ||
               (take(weight, { ".dq_vsign", "DQ_VSIGN", GGML_TYPE_I8, { ne[0] / 8, n_codes, ne[2], 1 }, true }, pack.vsign) &&
                take(weight, { ".dq_vscale", "DQ_VSCALE", GGML_TYPE_BF16, { n_codes, ne[2], 1, 1 } }, pack.vscale) &&
                take(weight, { ".dq_usign", "DQ_USIGN", GGML_TYPE_I8, { n_codes / 8, ne[1], ne[2], 1 }, true }, pack.usign) &&
                take(weight, { ".dq_uscale", "DQ_USCALE", GGML_TYPE_BF16, { n_codes, ne[2], 1, 1 } }, pack.uscale));
    }

    bool read_entries(const weight_info & weight, pack_layout & pack) {
        const int64_t * ne       = weight.ne;
        const int64_t   n        = (int64_t) weight.n_entries;
        const int64_t   n_blocks = (ne[0] + DQRELO_SPARSE_BLOCK - 1) / DQRELO_SPARSE_BLOCK;
        const ggml_type type     = type_of(weight, ".dq_entry");
        if (types.count(weight.name + ".dq_entry") > 0 &&
            !check_type(weight, ".dq_entry", { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_I8 }, n)) {
            return false;
        }
        const bool has_mask = types.count(weight.name + ".dq_mask") > 0;
        const bool places   = has_mask
                                  ? take(weight, { ".dq_mask", "DQ_MASK", GGML_TYPE_I8, { ne[0] / 8, ne[1], ne[2], 1 }, true }, pack.mask)
                                  : take(weight, { ".dq_count", "DQ_COUNT", GGML_TYPE_I8, { n_blocks, ne[1], ne[2], 1 } }, pack.count) &&
                                        take(weight, { ".dq_column", "DQ_COLUMN", GGML_TYPE_I8, { n, 1, 1, 1 } }, pack.column);
        return places && take(weight, { ".dq_start", "DQ_START", GGML_TYPE_I32, { ne[1], ne[2], 1, 1 } }, pack.start) &&
               take(weight, { ".dq_entry", "DQ_ENTRY", type, { n, 1, 1, 1 } }, pack.entries) &&
               (type != GGML_TYPE_I8 || take(weight, { ".dq_escale", "DQ_ESCALE", GGML_TYPE_F32, { ne[1], ne[2], 1, 1 } }, pack.escale));
    }

    bool read_dense(const weight_info & weight, pack_layout & pack) {
        const int64_t * ne = weight.ne;
        return check_type(weight, ".dq_dense", { GGML_TYPE_F32, GGML_TYPE_F16 }, ne[0]) &&
               take(weight, { ".dq_dense", "DQ_DENSE", type_of(weight, ".dq_dense"), { ne[0], ne[1], ne[2], ne[3] } }, pack.dense);
    }

    bool check_factor_types(const weight_info & weight) {
        static const std::vector<ggml_type> allowed = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
        return weight.rank == 0 ||
               (check_type(weight, ".dq_u", allowed, weight.rank) && check_type(weight, ".dq_v", allowed, weight.ne[0]));
    }

    // Storage type of a tensor of which several are allowed. An absent tensor passes as F32 and is found missing in its turn.
    ggml_type type_of(const weight_info & weight, const char * suffix) const {
        const auto it = types.find(weight.name + suffix);
        return it == types.end() ? GGML_TYPE_F32 : it->second;
    }

    bool check_type(const weight_info & weight, const char * suffix, const std::vector<ggml_type> & allowed, int64_t n_row) {
        const ggml_type   type = type_of(weight, suffix);
        const std::string name = printable(weight.name + suffix);
        if (std::find(allowed.begin(), allowed.end(), type) == allowed.end()) {
            std::string expected;
            for (ggml_type each : allowed) {
                expected += (expected.empty() ? "" : ", ") + storage_name(each);
            }
            err = name + ": type " + storage_name(type) + ", expected " + expected;
        } else if (n_row % ggml_blck_size(type) != 0) {
            err = message("%s: rows of %" PRId64 ", expected a multiple of %" PRId64 " for type %s", name.c_str(), n_row,
                          ggml_blck_size(type), storage_name(type).c_str());
        }
        return err.empty();
    }

    bool has_next(const weight_info & weight, const std::string & suffix) const {
        return next < header.tensors.size() && header.tensors[next].name == weight.name + suffix;
    }

    // The next tensor must be this one.
    bool take(const weight_info & weight, const expected_tensor & expected, part_layout & part) {
        if (!has_next(weight, expected.suffix)) {
            return fail_order(weight.name + expected.suffix);
        }
        const gguf_tensor_entry & tensor  = header.tensors[next];
        const declared_tensor &   facts   = out.tensors[next];
        const std::string         what    = quoted_tensor(tensor.name);
        shape                     logical = expected.ne;
        logical[0] *= expected.is_bits ? 8 : 1;
        if (tensor.name.size() >= GGML_MAX_NAME) {
            err = message("%s has a name of more than %d bytes, ggml's limit", what.c_str(), GGML_MAX_NAME - 1);
        } else if (facts.type != expected.declared) {
            err = what + " is declared " + printable(facts.type) + ", expected " + expected.declared;
        } else if (tensor.type != expected.type) {
            err = what + " is stored as " + storage_name(tensor.type) + ", expected " + storage_name(expected.type);
        } else if (!std::equal(tensor.ne, tensor.ne + 4, expected.ne.data())) {
            err = what + " has shape " + shape_text(tensor.ne) + ", expected " + shape_text(expected.ne.data());
        } else if (!std::equal(facts.ne, facts.ne + 4, logical.data(), [](uint64_t a, int64_t b) { return a == (uint64_t) b; })) {
            err = what + " is declared with shape " + dims_text(facts.ne, 4) + ", expected " + full_shape_text(logical.data());
        }
        if (!err.empty()) {
            return false;
        }
        part.present      = true;
        part.type         = tensor.type;
        part.offset_bytes = (size_t) (tensor.offset_bytes - header.tensors[first].offset_bytes);
        ++next;
        return true;
    }

    // The tensor that has to come next does not.
    bool fail_order(const std::string & name) {
        if (types.count(name) == 0) {
            err = quoted_tensor(name) + " is missing";
        } else {
            const std::string found = next < header.tensors.size() ? "'" + printable(header.tensors[next].name) + "'" : "the end";
            err                     = quoted_tensor(name) + " is out of order, " + found + " is in its place";
        }
        return false;
    }
};

} // namespace

bool is_sha256_text(const std::string & text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool read_delta_layout(const gguf_header & header, size_t n_file_bytes, delta_layout & out, std::string & err) {
    err.clear();
    uint32_t version = 1;
    header.get("dqrelo.version", version);
    if (!read_tensors(header, out, err) || !read_weights(header, version, out, err)) {
        return false;
    }
    pack_reader packs(header, out);
    if (!packs.read_all()) {
        err = packs.err;
        return false;
    }
    return check_needs_version(out, version, err) && check_order(header, n_file_bytes, err);
}

dqrelo_entry entry_of(const weight_info & weight, const pack_layout & layout, const void * pack) {
    // Integer arithmetic: `pack` may be an address of another device.
    const auto at = [&](const part_layout & part) -> const void * {
        return part.present ? (const void *) ((uintptr_t) pack + part.offset_bytes) : nullptr;
    };
    dqrelo_entry entry = {};
    for (int32_t k = 0; k < weight.n_planes; ++k) {
        entry.sign[k]  = (const uint8_t *) at(layout.sign[k]);
        entry.scale[k] = (const float *) at(layout.scale[k]);
    }
    entry.cscale        = (const float *) at(layout.cscale);
    entry.u             = at(layout.u);
    entry.v             = at(layout.v);
    entry.dense         = at(layout.dense);
    entry.vsign         = (const uint8_t *) at(layout.vsign);
    entry.vscale        = at(layout.vscale);
    entry.usign         = (const uint8_t *) at(layout.usign);
    entry.uscale        = at(layout.uscale);
    entry.mask          = (const uint8_t *) at(layout.mask);
    entry.count         = (const uint8_t *) at(layout.count);
    entry.column        = (const uint8_t *) at(layout.column);
    entry.start         = (const int32_t *) at(layout.start);
    entry.entries       = at(layout.entries);
    entry.escale        = (const float *) at(layout.escale);
    entry.type_entries  = layout.entries.type;
    entry.n_in          = weight.ne[0];
    entry.n_out         = weight.ne[1];
    entry.n_mat         = weight.ne[2] * weight.ne[3];
    entry.n_planes      = weight.n_planes;
    entry.rank          = weight.rank;
    entry.type_u        = layout.u.type;
    entry.type_v        = layout.v.type;
    entry.type_dense    = layout.dense.type;
    entry.scale_per_row = layout.scale_per_row;
    entry.n_codes       = (int32_t) weight.n_codes;
    std::copy_n(weight.plane_ranks, DQRELO_MAX_CODE_PLANES, entry.plane_ranks);
    return entry;
}

} // namespace dqrelo
