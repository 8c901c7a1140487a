// test-copy-memory.cpp: memory that one file leaves to the next, and no other memory.
#include "file/copy-memory.h"
#include "support/check.h"

#include <algorithm>
#include <cstring>

using namespace dqrelo;

static constexpr size_t N_BYTES = (size_t) 8 << 20;

static bool is_all(const uint8_t * data, size_t n_bytes, uint8_t value) {
    return std::all_of(data, data + n_bytes, [&](uint8_t byte) { return byte == value; });
}

// Returns memory full of 7, as a file left it that was there before.
static uint8_t * leave_sevens(size_t n_bytes) {
    const copy_memory memory = take_copy_memory(n_bytes);
    CHECK(memory.data != nullptr && memory.n_bytes == n_bytes && memory.n_reserved >= n_bytes);
    memset(memory.data, 7, n_bytes);
    leave_copy_memory(memory);
    return memory.data;
}

static void test_not_kept() {
    check::begin("nothing is kept unasked");
    leave_sevens(N_BYTES);
    const copy_memory memory = take_copy_memory(N_BYTES);
    CHECK(is_all(memory.data, N_BYTES, 0));
    leave_copy_memory(memory);
}

// The next file may be a little smaller, or larger.
static void test_kept() {
    for (const size_t n_bytes : { N_BYTES, N_BYTES - N_BYTES / 100, N_BYTES + N_BYTES / 100 }) {
        check::begin("memory goes to the next file");
        keep_copy_memory(true);
        const uint8_t * const left   = leave_sevens(N_BYTES);
        const copy_memory     memory = take_copy_memory(n_bytes);
        CHECK(memory.data == left && memory.n_bytes == n_bytes);
        CHECK(is_all(memory.data, std::min(n_bytes, N_BYTES), 7));
        memset(memory.data, 8, n_bytes); // It can be written to.

        check::begin("once");
        const copy_memory other = take_copy_memory(n_bytes);
        CHECK(other.data != left && is_all(other.data, n_bytes, 0));
        leave_copy_memory(other);
        leave_copy_memory(memory);
        keep_copy_memory(false);
    }

    check::begin("what is behind a smaller file is given back");
    keep_copy_memory(true);
    leave_sevens(N_BYTES);
    const size_t smaller = N_BYTES - N_BYTES / 100;
    leave_copy_memory(take_copy_memory(smaller));
    const copy_memory memory = take_copy_memory(N_BYTES);
    CHECK(is_all(memory.data, smaller, 7));
    const size_t page = (size_t) 1 << 16; // no system has larger ones
    CHECK(is_all(memory.data + smaller + page, N_BYTES - smaller - page, 0));
    leave_copy_memory(memory);
    keep_copy_memory(false);
}

static void test_other_sizes() {
    for (const size_t n_bytes : { N_BYTES / 2, N_BYTES - N_BYTES / 16, N_BYTES + N_BYTES / 16, 2 * N_BYTES, (size_t) 1 }) {
        check::begin("a file of another size gets memory of its own");
        keep_copy_memory(true);
        leave_sevens(N_BYTES);
        const copy_memory memory = take_copy_memory(n_bytes);
        CHECK(memory.n_bytes == n_bytes && is_all(memory.data, n_bytes, 0));
        leave_copy_memory(memory);
        keep_copy_memory(false);
    }
}

static void test_end() {
    check::begin("what was kept goes when no more is kept");
    keep_copy_memory(true);
    leave_sevens(N_BYTES);
    keep_copy_memory(false);
    const copy_memory memory = take_copy_memory(N_BYTES);
    CHECK(is_all(memory.data, N_BYTES, 0));
    leave_copy_memory(memory);

    check::begin("no memory");
    CHECK(take_copy_memory((size_t) 1 << 62).data == nullptr);
}

int main() {
    test_not_kept();
    test_kept();
    test_other_sizes();
    test_end();
    return check::finish();
}
