// row-codes.h: rows of a matrix in few bits a number, on the CPU. What is computed, and why: python/dqrelo_gguf/compress/codes.py and
// feedback.py, which have the same in tensors for other devices. A row's result depends on nothing but the row.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int ROW_PLANES_MAX = 8;

// A matrix of n_rows rows of n numbers, and where its codes go.
struct row_coding {
    const float * x; // [n_rows, n]
    size_t        n_rows;
    size_t        n;
    int           n_planes;      // 1 to ROW_PLANES_MAX
    float         gaussian_step; // of the best uniform quantiser of 2^n_planes levels for a Gaussian variable of variance 1
    float *       values;        // [n_rows, n], what the codes stand for
    float *       scales;        // [n_rows, n_planes], exact in BF16
    uint8_t *     codes;         // [n_rows, n]; bit q is the sign of plane q, 1 for +1
};

void code_rows(const row_coding & coding);

// Some columns of n_rows rows, one after the other, a column a line: error feedback inside them.
struct column_feedback {
    size_t          n; // columns
    size_t          n_rows;
    size_t          n_levels; // of a row at most
    float *         x;        // [n, n_rows], what is wanted; each column's errors go into those after it
    const float *   share;    // [n, n], how much of column i's error column j takes, in row i
    const float *   levels;   // [n_levels, n_rows], ascending; a row of fewer has infinity at the end
    const float *   middles;  // [n_levels - 1, n_rows] between them
    const uint8_t * code_of;  // [n_levels, n_rows], the code of each level
    float *         values;   // [n, n_rows], the levels that were taken
    uint8_t *       codes;    // [n, n_rows], theirs
    float *         errors;   // [n, n_rows], x less the values
};

void feed_back(const column_feedback & columns);
