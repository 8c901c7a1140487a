// delta-file.h: bounds-checked reader of a delta file (docs/format.md).
//
// A file that opens has passed every check of docs/format.md section 4, items 1-6: its counts, names, shapes, types and offsets can be
// trusted afterwards. Nothing here aborts or throws on what a file contains.
#pragma once

#include "dqrelo-op.h"
#include "file/mapped-file.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dqrelo {

// One weight of a delta: what it changes, and where its tensors lie.
struct weight_info {
    std::string name;                                // the base tensor's name
    int64_t     ne[4];                               // the base tensor's shape
    bool        dense;                               // kept whole: it has nothing of the next five
    uint64_t    n_entries;                           // of a sparse weight, which has nothing of the next four; 0: it is none
    int32_t     rank;                                // of U V, 0: none
    int32_t     n_planes;                            // sign planes
    int32_t     plane_ranks[DQRELO_MAX_CODE_PLANES]; // of the sign factors
    int64_t     n_codes;                             // of the sign factors: the sum of plane_ranks, 0: none
    float       error_delta;                         // ||D - D_hat||_F / ||D||_F
    float       error_weight;                        // ||W_ft - W_hat||_F / ||W_ft||_F
    size_t offset_bytes; // of the weight's first tensor, from the start of the file; a multiple of the alignment after the data section's
                         // start
    size_t n_bytes;      // from there to the end of its last tensor, padding in between included
};

// An opened delta file. Immutable but for arrange_signs(): any number of threads may read it. Pointers and references live as long as the
// object.
class delta_file {
public:
    // Whether every digest of docs/format.md section 5 is computed and compared, beside the reading.
    enum class digest_check {
        none,
        once, // unless they were right before, in this process, for the very same file, unchanged since (verified.h)
        always,
    };

    struct options {
        bool           header_only = false; // Items 1-5 are checked, and nothing behind the header is read.
        bool           use_mmap    = false; // The file is mapped instead of read into memory.
        bool           on_cpu      = false; // All weights will lie in the CPU's memory: their signs are arranged beside the reading.
        digest_check   digests     = digest_check::none;
        is_aborted_fn  is_aborted;
        is_decoding_fn is_decoding; // Reading and checking are paced (pacer.h).
    };

    // Reads and validates the file at `path`; all of it is in memory then, so that no page fault falls into a decode step. Returns nullptr
    // with one line in `err` on failure.
    static std::unique_ptr<delta_file> open(const std::string & path, const options & options, std::string & err);

    ~delta_file();
    delta_file(const delta_file &)             = delete;
    delta_file & operator=(const delta_file &) = delete;

    const std::vector<weight_info> & weights() const;

    // Index of the weight with this name, or -1.
    int64_t find(const std::string & name) const;

    // Entry of weight i, pointing into the mapping; all matrices of a weight of three dimensions. A vector has n_out 1.
    dqrelo_entry entry(size_t i) const;

    // Returns the same for a copy of the weight's bytes [offset_bytes, offset_bytes + n_bytes) that lies at `pack`, for instance in a
    // device's memory. `pack` is only added to, never read.
    dqrelo_entry entry_at(size_t i, const void * pack) const;

    // Returns the bytes of weight i in the mapping: n_bytes of them, 64-byte aligned.
    const uint8_t * data(size_t i) const;

    // Puts the signs of weights into the sequence in which the CPU's kernels take them: entry() then says so, and data() is not what the
    // file has any more. Does nothing where those take them as they are, or the file is mapped. Paced (pacer.h); no other thread may use
    // the object meanwhile.
    void arrange_signs(const std::vector<size_t> & weights, const is_decoding_fn & is_decoding);

    // Whether the signs of weight i are arranged.
    bool is_arranged(size_t i) const;

    // The bytes of weight i are not read any more: their pages go.
    void discard(size_t i) const;

    const std::string & path() const;
    const std::string & name() const;           // Returns general.name.
    const std::string & architecture() const;   // Returns the base's.
    const std::string & content_hash() const;   // 64 hex digits
    double              ratio() const;          // Returns dqrelo.ratio.
    size_t              n_bytes() const;        // Counts all tensors, without padding.
    size_t              n_bytes_mapped() const; // Counts the file's bytes.

    const std::string &              base_name() const;
    const std::string &              base_digest() const;    // 64 hex digits
    const std::vector<std::string> & sample_tensors() const; // Names base tensors.
    const std::vector<float> &       samples() const;        // Each of them has 32 values.

    // Empty means the base's. The template for requests with tools stands for one that is not there.
    const std::optional<std::string> & chat_template() const;
    // Returns the ids of the fine-tune's end tokens, each once: the list of all of them, or else its EOS, EOT and EOM. Empty means the
    // base's.
    const std::vector<int32_t> & eog_tokens() const;
    bool                         names_all_eog() const; // Returns whether eog_tokens() is that list.

    // Returns the token id under one of TOKEN_ID_KEYS (delta-keys.h), or -1 where the file has none.
    int64_t token_id(const char * key) const;

    // Returns the ids of the tokens whose text or type differs from the base's.
    std::vector<uint32_t> changed_tokens() const;

    // Returns a scalar of the metadata as text (bool: true or false; numbers: shortest decimal that reads back), or nothing if absent or an
    // array.
    std::optional<std::string> meta_str(const std::string & key) const;

    // Keys of all scalars in the metadata, in file order.
    std::vector<std::string> meta_keys() const;

private:
    struct impl;
    explicit delta_file(std::unique_ptr<impl> p);
    std::unique_ptr<impl> p;
};

} // namespace dqrelo
