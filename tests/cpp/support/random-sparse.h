// random-sparse.h: random entries of a sparse weight.
#pragma once

#include "dqrelo-op.h"
#include "random-matrix.h"

#include <utility>

// Where entries of a sparse weight are said to lie.
enum class sparsity { NONE, MASK, LISTS };

// Random entries of a sparse weight, and their values. Some rows and some blocks of 256 columns are empty. Of a mask some rows are full;
// lists have at most 255 entries a block, and some have so many.
struct random_sparse {
    bytes                mask, count, column, entries;
    std::vector<int32_t> start;
    int32_t              n_entries = 0;
    std::vector<float>   escale;
    std::vector<double>  value; // (n_out, n_in), row-major

    void fill(dqrelo_entry & e, sparsity kind, ggml_type type, std::mt19937 & rng) {
        const int64_t n_blocks = (e.n_in + 255) / 256;
        value.assign((size_t) (e.n_in * e.n_out), 0.0);
        mask.assign(kind == sparsity::MASK ? (size_t) (e.n_in / 8 * e.n_out) : 0, 0);
        count.assign(kind == sparsity::LISTS ? (size_t) (n_blocks * e.n_out) : 0, 0);
        for (int64_t i = 0; i < e.n_out; i++) {
            start.push_back(n_entries);
            if (type == GGML_TYPE_I8) {
                escale.push_back(std::ldexp(1.0f, (int) (rng() % 5) - 2));
            }
            for (int64_t j = 0; j < e.n_in; j++) {
                if (is_entry(kind, n_blocks, i, j, rng)) {
                    n_entries++;
                    place(kind, e.n_in, i, j);
                    value[(size_t) (i * e.n_in + j)] = add_value(type, rng);
                }
            }
        }
        point(e, type);
    }

    // Appends the next matrix of a stack, whose rows count entries through all of its matrices.
    void append(const random_sparse & next) {
        for (const auto & [all, more] :
             { std::pair(&mask, &next.mask), { &count, &next.count }, { &column, &next.column }, { &entries, &next.entries } }) {
            all->insert(all->end(), more->begin(), more->end());
        }
        for (int32_t first : next.start) {
            start.push_back(n_entries + first);
        }
        escale.insert(escale.end(), next.escale.begin(), next.escale.end());
        n_entries += next.n_entries;
    }

    void point(dqrelo_entry & e, ggml_type type) const {
        const auto data = [](const bytes & v) { return v.empty() ? nullptr : v.data(); };
        e.entries       = entries.data();
        e.type_entries  = type;
        e.start         = start.data();
        e.mask          = data(mask);
        e.count         = data(count);
        e.column        = data(column);
        e.escale        = escale.empty() ? nullptr : escale.data();
    }

private:
    static bool is_entry(sparsity kind, int64_t n_blocks, int64_t i, int64_t j, std::mt19937 & rng) {
        if (i == 0 && j < 3) {
            return true; // A weight has entries.
        }
        if (i % 7 == 3 || (n_blocks > 1 && j / 256 % 3 == i % 3)) {
            return false;
        }
        if (i % 5 == 1) {
            return kind == sparsity::MASK || j % 256 != 200;
        }
        return rng() % 8 == 0;
    }

    void place(sparsity kind, int64_t n_in, int64_t i, int64_t j) {
        if (kind == sparsity::MASK) {
            mask[(size_t) (i * (n_in / 8) + j / 8)] |= (uint8_t) (1 << (j % 8));
        } else {
            count[(size_t) (i * ((n_in + 255) / 256) + j / 256)]++;
            column.push_back((uint8_t) (j % 256));
        }
    }

    double add_value(ggml_type type, std::mt19937 & rng) {
        if (type == GGML_TYPE_I8) {
            const uint16_t h = random_f16(rng) & 0xff00;
            entries.push_back((uint8_t) (h >> 8));
            return f16_value(h) * escale.back();
        }
        const random_matrix one = make_matrix(type, 1, rng);
        entries.insert(entries.end(), one.data.begin(), one.data.end());
        return one.value[0];
    }
};
