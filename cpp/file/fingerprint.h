// fingerprint.h: which base model a delta belongs to (docs/format.md, section 6).
//
// Everything is computed from the base file (all shards of a split one), never from loaded tensors: backends may have repacked those.
// Only the header and a few hundred bytes of each tensor are read.
#pragma once

#include "file/delta-file.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace dqrelo {

// At least this correlation of dequantised samples means the same model in another quantisation.
constexpr double SAME_MODEL_CORRELATION = 0.90;

constexpr size_t N_SAMPLES_PER_TENSOR = 32;

// A base model's file, opened for identification. Immutable after open.
class base_file {
public:
    // Opens `path`, and all other shards if it is one of a split model. Returns nullptr with one line in `err` on failure.
    static std::unique_ptr<base_file> open(const std::string & path, std::string & err);

    ~base_file();
    base_file(const base_file &)             = delete;
    base_file & operator=(const base_file &) = delete;

    const std::string & path() const;
    const std::string & architecture() const;
    const std::string & name() const;   // Returns general.name, or the file name without extension.
    const std::string & digest() const; // Returns 64 hex digits, which are computed once at open.

    // Counts the tokens of the vocabulary, 0: the file has none.
    int64_t n_tokens() const;

    // Shape of a tensor (4 numbers), or nullptr.
    const int64_t * shape(const std::string & tensor) const;

    // Returns the tensors that a delta made for this base samples.
    std::vector<std::string> sample_tensors() const;

    // Dequantised samples of the named tensors, 32 each, in that order. Returns false with one line in `err` if a name is missing.
    bool samples(const std::vector<std::string> & names, std::vector<float> & out, std::string & err) const;

private:
    struct impl;
    explicit base_file(std::unique_ptr<impl> p);
    std::unique_ptr<impl> p;
};

enum class base_match {
    same_file,  // The exact digest is equal.
    same_model, // The bytes differ and the samples correlate, so it is another quantisation.
    other_model,
};

struct base_comparison {
    base_match match       = base_match::other_model;
    double     correlation = 0.0; // 1 means the same file.
    // One line for same_model and other_model: both names and digests, and what to do.
    std::string reason;
};

// Grades `base` as the base of `delta`.
base_comparison compare(const delta_file & delta, const base_file & base);

// Architecture, and existence and exact shape of every weight of `delta` in `base`. Returns false with one line in `err`.
bool check_shapes(const delta_file & delta, const base_file & base, std::string & err);

// The tokens that the file of `delta` names are among the base's n_tokens. Returns false with one line in `err`.
bool check_tokens(const delta_file & delta, int64_t n_tokens, std::string & err);

// Pearson correlation of two lists of samples in groups of 32, each group scaled by the inverse root mean square of `of_delta`'s group;
// groups of zeros are left out. 0 where it is undefined.
double sample_correlation(const std::vector<float> & of_delta, const std::vector<float> & of_base);

} // namespace dqrelo
