// test-page-maker.cpp: pages that are made ahead of a reader change nothing but when they are made.
#include "file/copy-memory.h"
#include "file/page-maker.h"
#include "support/check.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

using namespace dqrelo;

static constexpr size_t MIB     = (size_t) 1 << 20;
static constexpr size_t N_BYTES = 64 * MIB;

// Returns how many bytes of the memory have pages.
static size_t n_made(const copy_memory & memory) {
    const size_t               page = (size_t) sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> is_there(memory.n_reserved / page);
    mincore(memory.data, memory.n_reserved, is_there.data());
    return page * (size_t) std::count_if(is_there.begin(), is_there.end(), [](unsigned char state) { return (state & 1) != 0; });
}

// Waits until n_bytes have pages. Returns false if that does not come about.
static bool wait_for(const copy_memory & memory, size_t n_bytes) {
    for (int i = 0; i < 1000 && n_made(memory) < n_bytes; i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return n_made(memory) >= n_bytes;
}

static bool system_makes_pages() {
#ifdef MADV_POPULATE_WRITE
    const copy_memory memory = take_copy_memory(MIB);
    const bool        makes  = madvise(memory.data, MIB, MADV_POPULATE_WRITE) == 0;
    leave_copy_memory(memory);
    return makes;
#else
    return false;
#endif
}

// It makes what will be written next, and no more: a load that is given up has not taken all of its memory.
static void test_ahead() {
    const copy_memory memory = take_copy_memory(N_BYTES);
    CHECK(memory.is_fresh && n_made(memory) == 0);
    page_maker pages(memory.data, N_BYTES, {});
    for (size_t n_written = 0; n_written <= 32 * MIB; n_written += 8 * MIB) {
        check::begin("pages are made ahead");
        pages.written(n_written);
        CHECK(wait_for(memory, n_written + 20 * MIB));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        CHECK(n_made(memory) <= n_written + 32 * MIB);
    }
    check::begin("all pages are made");
    pages.written(N_BYTES);
    CHECK(wait_for(memory, N_BYTES));
    check::begin("no byte was changed");
    CHECK(std::all_of(memory.data, memory.data + N_BYTES, [](uint8_t byte) { return byte == 0; }));
    leave_copy_memory(memory);
}

// A reader that is faster, and one that starts while pages are being made, keep what they wrote.
static void test_written() {
    for (const size_t step : { MIB / 16, 3 * MIB, N_BYTES }) {
        check::begin("what was written stays");
        const copy_memory memory = take_copy_memory(N_BYTES);
        {
            page_maker pages(memory.data, N_BYTES, [] { return true; });
            for (size_t n = 0; n < N_BYTES;) {
                const size_t n_here = std::min(step, N_BYTES - n);
                memset(memory.data + n, 7, n_here);
                pages.written(n += n_here);
            }
        }
        CHECK(std::all_of(memory.data, memory.data + N_BYTES, [](uint8_t byte) { return byte == 7; }));
        leave_copy_memory(memory);
    }
}

// Nobody has to write to the end.
static void test_ended() {
    for (const size_t n_bytes : { (size_t) 1, 5 * MIB, N_BYTES }) {
        check::begin("it ends where it is");
        const copy_memory memory = take_copy_memory(n_bytes);
        {
            const page_maker pages(memory.data, n_bytes, {});
        }
        CHECK(n_made(memory) <= 32 * MIB);
        leave_copy_memory(memory);
    }
}

int main() {
    if (system_makes_pages()) {
        test_ahead();
    }
    test_written();
    test_ended();
    return check::finish();
}
