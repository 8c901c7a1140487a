// sign-kernels.cpp: products of signs and quantised rows, exactly, for every instruction set; and the transposition of signs.

#include "sign-kernels.h"

#include "support/check.h"
#include "support/quantised.h"
#include "support/random-entry.h"

#include "cpu/sign-rows.h"
#include "cpu/sign-runs.h"
#include "cpu/transposed-signs.h"

#include <algorithm>
#include <array>
#include <cstring>

// Returns n_i rows of signs, the first one all minus ones. There is one byte before, so that no row is aligned, and none after, so that a
// sanitizer sees a read past the end.
static bytes random_signs(int64_t n, int n_i, std::mt19937 & rng) {
    bytes sign(1 + (size_t) (n / 8 * n_i));
    for (uint8_t & b : sign) {
        b = (uint8_t) rng();
    }
    memset(sign.data() + 1, 0, (size_t) (n / 8));
    return sign;
}

static int64_t sum_of_signs(const bytes & sign, int64_t i, const std::vector<int32_t> & q, int64_t n) {
    int64_t sum = 0;
    for (int64_t j = 0; j < n; j++) {
        sum += (sign[(size_t) (1 + i * (n / 8) + j / 8)] >> (j % 8)) & 1 ? q[(size_t) j] : -q[(size_t) j];
    }
    return sum;
}

// Returns a row in which a share of all runs of four columns has values of almost the largest magnitude, and the others have small ones.
static std::vector<float> row_of_runs(int64_t n, std::mt19937 & rng, float share) {
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    std::vector<float>                    x((size_t) n);
    bool                                  large = false;
    for (int64_t j = 0; j < n; j++) {
        large                 = j % 4 == 0 ? uniform(rng) < share : large;
        const float magnitude = large ? 0.9f + 0.1f * uniform(rng) : 0.1f * uniform(rng);
        x[(size_t) j]         = uniform(rng) < 0.5f ? -magnitude : magnitude;
    }
    return x;
}

// Multiplies the tiles again, as `again` has them, and checks that each product is the same.
static void check_same_products(const dqrelo_kernels * kernels, const std::vector<dqrelo_sign_tile> & tiles,
                                std::vector<dqrelo_sign_tile> again, const quantised & a, const dqrelo_act * act, int n_t, int64_t n,
                                int64_t ld) {
    std::vector<std::vector<int32_t>> out;
    for (dqrelo_sign_tile & tile : again) {
        out.emplace_back((size_t) ((n_t - 1) * ld + tile.n_i + 1), 7654321);
        tile.out = out.back().data();
    }
    dqrelo_ahead nothing = {};
    kernels->sign_dots(again.data(), (int) again.size(), a.q.data(), dqrelo_q_bytes(n), act, n_t, n, ld, &nothing);
    bool same = true;
    for (size_t k = 0; k < tiles.size(); k++) {
        for (int64_t t = 0; t < n_t; t++) {
            same = same && std::equal(tiles[k].out + t * ld, tiles[k].out + t * ld + tiles[k].n_i, out[k].begin() + t * ld);
        }
        same = same && out[k].back() == 7654321;
    }
    CHECK(same);
}

// Returns tiles of transposed matrices, in `memory`, which have the rows of a tile behind n_before others, and where these are whole groups
// before others too.
static std::vector<dqrelo_sign_tile> transposed_tiles(const std::vector<dqrelo_sign_tile> & tiles, int64_t n, int64_t n_before,
                                                      std::vector<bytes> & memory) {
    std::vector<dqrelo_sign_tile> out = tiles;
    for (dqrelo_sign_tile & tile : out) {
        const int64_t n_after = tile.n_i % DQRELO_GROUP_ROWS == 0 ? n_before * 3 / 2 : 0;
        tile.row              = n_before;
        tile.n_rows           = n_before + tile.n_i + n_after;
        bytes matrix((size_t) (tile.n_rows * (n / 8)), 0x5a);
        std::copy(tile.sign, tile.sign + tile.n_i * (n / 8), matrix.begin() + n_before * (n / 8));
        dqrelo_transpose_signs(matrix.data(), tile.n_rows, n / 8);
        memory.push_back(std::move(matrix));
        tile.sign       = memory.back().data() + n_before * (n / 8);
        tile.transposed = true;
    }
    return out;
}

// Multiplies tiles of signs with n_t rows of q. The products must be the same with transposed signs, where the kernels take them, wherever
// a tile lies in its matrix, and those of one row with tables that were made before.
static void multiply_signs(const dqrelo_kernels * kernels, const std::vector<dqrelo_sign_tile> & tiles, const quantised & a, int n_t,
                           int64_t n, int64_t ld, dqrelo_ahead * ahead) {
    kernels->sign_dots(tiles.data(), (int) tiles.size(), a.q.data(), dqrelo_q_bytes(n), a.act.data(), n_t, n, ld, ahead);
    dqrelo_act act    = a.act[0];
    const auto memory = n_t == 1 ? make_tables(kernels, a.q.data(), n, &act) : std::vector<cache_line>();
    if (n_t == 1) {
        check_same_products(kernels, tiles, tiles, a, &act, 1, n, ld);
    }
    for (const int64_t n_before : { 0, 16, 48, 80 }) {
        std::vector<bytes> signs;
        if (kernels->takes_transposed) {
            const auto transposed = transposed_tiles(tiles, n, n_before, signs);
            check_same_products(kernels, tiles, transposed, a, a.act.data(), n_t, n, ld);
            if (n_t == 1) {
                check_same_products(kernels, tiles, transposed, a, &act, 1, n, ld);
            }
        }
    }
}

// Multiplies a tile of signs for each number of outputs in n_i; `large` is the share of runs with large values, or negative for rows
// that are normally distributed.
static void test_sign_dots_exact(const dqrelo_kernels * kernels, int64_t n, int n_t, const std::vector<int> & n_i, float large = -1.0f) {
    check::begin(format("sign_dots/%s/n=%lld/rows=%d/outputs=%d, %d tiles, large %g", kernels->name, (long long) n, n_t, n_i[0],
                        (int) n_i.size(), (double) large)
                     .c_str());
    std::mt19937                    rng(13);
    std::vector<std::vector<float>> x;
    for (int t = 0; t < n_t; t++) {
        x.push_back(large < 0.0f ? random_row(n, rng, t % 2 == 1) : row_of_runs(n, rng, large));
    }
    const quantised a = quantise(kernels, x, nullptr);

    const int                         ld = *std::max_element(n_i.begin(), n_i.end()) + 3;
    std::vector<bytes>                sign;
    std::vector<std::vector<int32_t>> got(n_i.size(), std::vector<int32_t>((size_t) (ld * n_t), 1234567));
    std::vector<dqrelo_sign_tile>     tiles;
    for (size_t k = 0; k < n_i.size(); k++) {
        sign.push_back(random_signs(n, n_i[k], rng));
        tiles.push_back({ sign[k].data() + 1, n_i[k], got[k].data(), false, 0, n_i[k] });
    }
    const bytes     after(3000);
    const uintptr_t begin = (uintptr_t) after.data(), end = begin + after.size();
    dqrelo_ahead    ahead = { begin, end };
    multiply_signs(kernels, tiles, a, n_t, n, ld, &ahead);
    bool exact  = true;
    bool inside = true;
    for (size_t k = 0; k < n_i.size(); k++) {
        for (int t = 0; t < n_t; t++) {
            const std::vector<int32_t> q = integers(kernels, a, t, n);
            for (int i = 0; i < ld; i++) {
                const int32_t value = got[k][(size_t) (t * ld + i)];
                exact               = exact && (i >= n_i[k] || value == sum_of_signs(sign[k], i, q, n));
                inside              = inside && (i < n_i[k] || value == 1234567);
            }
        }
    }
    CHECK(exact);
    CHECK(inside);
    CHECK(ahead.end == end && ahead.next >= begin && ahead.next < end + 64);
}

// Long rows of equal values and signs: the largest sums in every lane. 65536 is the longest row with the full range of q.
static void test_sign_dots_long_row(const dqrelo_kernels * kernels, int64_t n, float value) {
    check::begin(format("sign_dots/%s/n=%lld, all %g", kernels->name, (long long) n, (double) value).c_str());
    const quantised        a = quantise(kernels, { std::vector<float>((size_t) n, value) }, nullptr);
    const bytes            sign((size_t) (n / 8), 0xff);
    int32_t                got     = 0;
    dqrelo_ahead           nothing = {};
    const dqrelo_sign_tile tile    = { sign.data(), 1, &got, false, 0, 1 };
    multiply_signs(kernels, { tile }, a, 1, n, 1, &nothing);
    CHECK(got == (value < 0.0f ? -dqrelo_q_max(n) : dqrelo_q_max(n)) * n);
    CHECK(std::fabs(got * (double) a.act[0].d / ((double) value * (double) n) - 1.0) < 1e-6);
}

// A row so long that its largest lower bytes, all of one sign, add up to more than 2^24 in a sixteenth of it.
static void test_sign_dots_longest_row(const dqrelo_kernels * kernels) {
    const int64_t n = 1 << 22;
    for (const float lower : { 127.0f, -128.0f }) {
        check::begin(format("sign_dots/%s/n=%lld, all %g", kernels->name, (long long) n, (double) lower).c_str());
        std::vector<float> x((size_t) n, lower);
        x[0]              = (float) dqrelo_q_max(n);
        const quantised a = quantise(kernels, { x, x, x }, nullptr);
        const bytes     sign((size_t) (n / 8), 0xff);
        for (const int n_t : { 1, 3 }) {
            std::vector<int32_t>   got(3);
            dqrelo_ahead           nothing = {};
            const dqrelo_sign_tile tile    = { sign.data(), 1, got.data(), false, 0, 1 };
            multiply_signs(kernels, { tile }, a, n_t, n, 1, &nothing);
            const int64_t want = dqrelo_q_max(n) + (n - 1) * (int64_t) lower;
            CHECK(got[0] == want && got[(size_t) n_t - 1] == want);
        }
    }
}

// Rows whose neighbouring columns have the sum 65215, 0xfebf: in tables of partial sums whose digits have 6, 5 and 5 bits, the lowest
// digit is as large as it can be, 63, and the highest one too. With the other sign they are as large where the sign bits are not set.
static void test_sign_dots_largest_digits(const dqrelo_kernels * kernels) {
    const int64_t n = 8192 + 520;
    for (const float sign : { 1.0f, -1.0f }) {
        check::begin(format("sign_dots/%s/largest digits, sign %g", kernels->name, (double) sign).c_str());
        std::vector<float> x((size_t) n);
        for (int64_t j = 0; j < n; j++) {
            x[(size_t) j] = sign * (j % 2 ? 32576.0f : 32639.0f);
        }
        const quantised      a   = quantise(kernels, { x, x, x, x, x, x, x, x }, nullptr);
        const int            n_i = 17; // a whole group of transposed rows, and one row more
        const bytes          signs((size_t) (n_i * (n / 8)), sign > 0.0f ? 0xff : 0);
        std::vector<int32_t> got((size_t) (8 * n_i));
        dqrelo_ahead         nothing = {};
        for (const int n_t : { 1, 8 }) {
            const dqrelo_sign_tile tile = { signs.data(), n_i, got.data(), false, 0, n_i };
            multiply_signs(kernels, { tile }, a, n_t, n, n_i, &nothing);
            CHECK(std::all_of(got.begin(), got.begin() + n_t * n_i, [&](int32_t value) { return value == n / 2 * 65215; }));
        }
    }
}

// The same of four neighbouring columns whose sum has 16 bits, all of them set, or the 17th alone. The last column has the largest value,
// so that q is x.
static void test_sign_dots_largest_four(const dqrelo_kernels * kernels) {
    const int64_t n   = 1032;
    const int     n_i = 600, n_t = 13;
    for (const float last : { 16383.0f, 16384.0f }) {
        for (const float sign : { 1.0f, -1.0f }) {
            check::begin(
                format("sign_dots/%s/largest sums of four columns, sign %g, last %g", kernels->name, (double) sign, (double) last).c_str());
            std::vector<float> x((size_t) n, 0.0f);
            for (int64_t j = 0; j < n - 8; j++) {
                x[(size_t) j] = sign * (j % 4 < 3 ? 16384.0f : last);
            }
            x[(size_t) n - 1]           = sign * 32639.0f;
            const int64_t          want = (n - 8) / 4 * (3 * 16384 + (int64_t) last) + 32639;
            const quantised        a    = quantise(kernels, std::vector<std::vector<float>>((size_t) n_t, x), nullptr);
            const bytes            signs((size_t) (n_i * (n / 8)), sign > 0.0f ? 0xff : 0);
            std::vector<int32_t>   got((size_t) (n_t * n_i));
            dqrelo_ahead           nothing = {};
            const dqrelo_sign_tile tile    = { signs.data(), n_i, got.data(), false, 0, n_i };
            multiply_signs(kernels, { tile }, a, n_t, n, n_i, &nothing);
            CHECK(std::all_of(got.begin(), got.end(), [&](int32_t value) { return value == want; }));
            multiply_signs(kernels, { tile }, a, 1, n, n_i, &nothing);
            CHECK(std::all_of(got.begin(), got.end(), [&](int32_t value) { return value == want; }));
        }
    }
}

void test_sign_kernels(const dqrelo_kernels * kernels) {
    for (int64_t n : { 8, 72, 576, 1000, 4104 }) {
        for (int n_t : { 1, 3, 17, 33 }) {
            for (int n_i : { 1, 13, 16, 64, 77 }) {
                test_sign_dots_exact(kernels, n, n_t, { n_i });
            }
        }
    }
    for (int n_t : { 1, 2, 8 }) { // more outputs than a tile of any kernel
        test_sign_dots_exact(kernels, 1000, n_t, { 300 });
        for (int64_t n : { 112, 4096, 9000 }) { // several tiles, in one segment of columns and in two
            test_sign_dots_exact(kernels, n, n_t, { 130, 64, 1, 200 });
            test_sign_dots_exact(kernels, n, n_t, { 60, 1, 40 });
        }
    }
    for (int64_t n : { 8, 112, 384, 1000, 4104 }) { // enough outputs for tables of four columns, with sums of more than 16 bits
        for (int n_t : { 1, 2, 3, 5 }) {
            for (float large : { -1.0f, 0.0f, 0.02f, 0.3f, 1.0f }) {
                test_sign_dots_exact(kernels, n, n_t, { 128 }, large);
                test_sign_dots_exact(kernels, n, n_t, { 1, 47, 97 }, large);
            }
        }
    }
    for (int64_t n : { 8192, 20480, 20488 }) { // as many columns as there is room for tables of, and more
        test_sign_dots_exact(kernels, n, 3, { 130 }, 0.02f);
    }
    for (int64_t n : { 32768, 32776 }) { // as many columns as there is room for a row of q of, and more
        test_sign_dots_exact(kernels, n, 1, { 5, 2 }, 0.02f);
    }
    for (int64_t n : { 8, 384, 1000 }) { // many rows
        test_sign_dots_exact(kernels, n, 13, { 1, 300, 257 });
    }
    test_sign_dots_longest_row(kernels);
    test_sign_dots_largest_digits(kernels);
    test_sign_dots_largest_four(kernels);
    for (int64_t n : { 4104, 65536, 262144 }) {
        test_sign_dots_long_row(kernels, n, 3.0f);
        test_sign_dots_long_row(kernels, n, -3.0f);
    }
}

// A matrix as the head of cpu/transposed-signs.h draws it, byte after byte.
static bytes drawn(const bytes & sign, int64_t n_rows, int64_t row_bytes) {
    bytes      out;
    const auto append = [&](int64_t group, int64_t b) { // byte b of its rows
        for (int64_t r = group; r < group + 16 && b < row_bytes; r++) {
            out.push_back(sign[(size_t) (r * row_bytes + b)]);
        }
    };
    const int64_t n_whole = n_rows / 16 * 16;
    for (int64_t block = 0; block < n_whole; block += 64) {
        for (int64_t unit = 0; unit < row_bytes; unit += 64) {
            for (int64_t group = block; group < std::min(block + 64, n_whole); group += 16) {
                for (const int64_t chunk : { unit, unit + 32 }) {
                    for (int64_t b = chunk; b < chunk + 16; b++) {
                        append(group, b);
                        append(group, b + 16);
                    }
                }
            }
        }
    }
    out.insert(out.end(), sign.begin() + (int64_t) out.size(), sign.end());
    return out;
}

static void test_transposition(int64_t n_rows, int64_t row_bytes) {
    check::begin(format("transposed signs/%lld rows of %lld bytes", (long long) n_rows, (long long) row_bytes).c_str());
    std::mt19937 rng(51);
    bytes        sign((size_t) (n_rows * row_bytes)); // Of exactly this length, so that a sanitizer sees a read past the end.
    for (uint8_t & b : sign) {
        b = (uint8_t) rng();
    }
    bytes transposed = sign;
    dqrelo_transpose_signs(transposed.data(), n_rows, row_bytes);
    CHECK(transposed == drawn(sign, n_rows, row_bytes));

    for (const bool is_transposed : { false, true }) {
        const uint8_t * data = (is_transposed ? transposed : sign).data();
        bool            same = true;
        for (int64_t b0 : { (int64_t) 0, row_bytes / 3, row_bytes - 1 }) {
            const int64_t n = std::min(row_bytes - b0, sign_rows::MAX_BYTES);
            sign_rows     rows(is_transposed, data, n_rows, row_bytes, b0, n);
            for (int64_t k = 0; k < 2 * n_rows; k++) { // in sequence, and then not
                const int64_t i = k < n_rows ? k : k * 7 % n_rows;
                same            = same && memcmp(rows.row(i), sign.data() + i * row_bytes + b0, (size_t) n) == 0;
            }
        }
        CHECK(same);
    }
}

// Each matrix of a stack has groups of its own; the planes of B are one matrix.
static void test_sign_matrices() {
    check::begin("transposed signs/matrices of an entry");
    const bytes  data(1);
    const auto   address = [&](int64_t offset) { return (const uint8_t *) ((uintptr_t) data.data() + (uintptr_t) offset); };
    dqrelo_entry e       = {};
    e.n_in               = 64;
    e.n_out              = 40;
    e.n_mat              = 2;
    e.n_planes           = 2;
    e.n_codes            = 32;
    e.plane_ranks[0]     = 20;
    e.plane_ranks[1]     = 12;
    e.sign[0]            = address(0);
    e.sign[1]            = address(1000);
    e.vsign              = address(2000);
    e.usign              = address(3000);

    using matrix = std::array<int64_t, 3>;
    std::vector<matrix> found;
    const auto          take = [](const uint8_t * sign, int64_t n_rows, int64_t row_bytes, void * to) {
        if (n_rows > 0) {
            ((std::vector<matrix> *) to)->push_back({ (int64_t) (uintptr_t) sign, n_rows, row_bytes });
        }
    };
    dqrelo_for_each_sign_matrix(&e, take, &found);
    for (matrix & m : found) {
        m[0] -= (int64_t) (uintptr_t) data.data();
    }
    std::sort(found.begin(), found.end());
    const std::vector<matrix> want = { { 0, 40, 8 },    { 320, 40, 8 },  { 1000, 40, 8 }, { 1320, 40, 8 },
                                       { 2000, 32, 8 }, { 2256, 32, 8 }, { 3000, 40, 4 }, { 3160, 40, 4 } };
    CHECK(found == want);
}

// Runs have each byte of a tile once, in each segment of the columns, and then some of the rows that follow it in the matrix.
static void test_runs(bool transposed, int64_t n_rows, int64_t row_bytes, int64_t row, int n_i, int64_t segment_bytes) {
    check::begin(format("runs of signs/%s, rows %lld to %lld of %lld, %lld bytes, segments of %lld",
                        transposed ? "transposed" : "as in the file", (long long) row, (long long) (row + n_i), (long long) n_rows,
                        (long long) row_bytes, (long long) segment_bytes)
                     .c_str());
    const auto marked = [&](int64_t begin, int64_t end) { // where rows lie
        bytes matrix((size_t) (n_rows * row_bytes));
        std::fill(matrix.begin() + begin * row_bytes, matrix.begin() + end * row_bytes, (uint8_t) 1);
        if (transposed) {
            dqrelo_transpose_signs(matrix.data(), n_rows, row_bytes);
        }
        return matrix;
    };
    const bytes            matrix((size_t) (n_rows * row_bytes)), following = marked(row + n_i, n_rows);
    const dqrelo_sign_tile tile = { matrix.data() + row * row_bytes, n_i, nullptr, transposed, row, n_rows };
    sign_runs              runs(&tile, 1, 8 * row_bytes, 8 * segment_bytes);
    bytes                  passed(matrix.size());
    int64_t                left = n_i * row_bytes, n_behind = 0;
    bool                   inside = true;
    for (sign_run run = runs.next(); run.begin < run.end; run = runs.next()) {
        const int64_t begin = (int64_t) (run.begin - (uintptr_t) matrix.data()), end = begin + (int64_t) (run.end - run.begin);
        inside = inside && begin >= 0 && end <= (int64_t) matrix.size();
        for (int64_t b = begin; inside && b < end; b++) {
            passed[(size_t) b] += left > 0 ? 1 : 0;
            inside = inside && (left > 0 || following[(size_t) b] == 1);
        }
        n_behind += left > 0 ? 0 : end - begin;
        left -= left > 0 ? end - begin : 0;
    }
    CHECK(inside && left == 0 && passed == marked(row, row + n_i));
    const int64_t n_following = (n_rows - row - n_i) * std::min(segment_bytes, row_bytes);
    CHECK(n_behind <= runs.bytes_ahead() && n_behind >= std::min(runs.bytes_ahead(), n_following));
}

void test_transposed_signs() {
    for (const bool transposed : { false, true }) {
        for (int64_t row_bytes : { 1, 33, 59, 65, 256, 300 }) {
            for (int64_t segment_bytes : { (int64_t) 128, row_bytes }) {
                test_runs(transposed, 133, row_bytes, 0, 133, segment_bytes);
                test_runs(transposed, 133, row_bytes, 64, 64, segment_bytes);
                test_runs(transposed, 133, row_bytes, 16, 80, segment_bytes);
                test_runs(transposed, 133, row_bytes, 48, 85, segment_bytes);
                test_runs(transposed, 600, row_bytes, 208, 128, segment_bytes);
            }
        }
    }
    for (int64_t n_rows : { 1, 15, 16, 17, 48, 50, 64, 80, 133 }) {
        for (int64_t row_bytes = 1; row_bytes < 70; row_bytes++) {
            test_transposition(n_rows, row_bytes);
        }
        for (int64_t row_bytes : { 96, 128, 257, 300 }) {
            test_transposition(n_rows, row_bytes);
        }
    }
    test_sign_matrices();
}
