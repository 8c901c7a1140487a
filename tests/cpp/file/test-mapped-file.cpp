// test-mapped-file.cpp: a copy of a file, and what is made ready beside the reading of it.
#include "file/mapped-file.h"
#include "file/page-cache.h"
#include "support/check.h"

#ifndef _WIN32

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

using namespace dqrelo;

static constexpr size_t MIB     = (size_t) 1 << 20;
static constexpr size_t N_BYTES = 128 * MIB + 54321;

static const char * const PATH = "test-mapped-file.bin";

// The bytes of the file: every MiB has others.
static std::vector<uint8_t> content() {
    std::vector<uint8_t> bytes(N_BYTES);
    for (size_t i = 0; i < N_BYTES; i++) {
        bytes[i] = (uint8_t) (i / MIB * 37 + i % 251);
    }
    return bytes;
}

static void write_file(const std::vector<uint8_t> & bytes) {
    FILE * const file = fopen(PATH, "wb");
    CHECK(file && fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
    fclose(file);
}

// Returns how many bytes have pages in memory, of a map in the page cache.
static size_t n_in_memory(const void * data, size_t n_bytes) {
    const size_t               page = (size_t) sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> is_there((n_bytes + page - 1) / page);
    mincore((void *) data, n_bytes, is_there.data());
    return page * (size_t) std::count_if(is_there.begin(), is_there.end(), [](unsigned char state) { return (state & 1) != 0; });
}

// Returns how many bytes of the file the system keeps.
static size_t n_cached() {
    const int    fd   = open(PATH, O_RDONLY);
    void * const map  = mmap(nullptr, N_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    const size_t here = n_in_memory(map, N_BYTES);
    munmap(map, N_BYTES);
    close(fd);
    return here;
}

// Makes the next read of the file come from the disk. Returns false where it lies in memory only, or the system does not do that.
static bool drop_from_page_cache() {
#ifdef __linux__
    const int fd = open(PATH, O_RDONLY);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    return n_cached() == 0;
#else
    return false;
#endif
}

static bool system_makes_pages() {
#ifdef MADV_POPULATE_WRITE
    void * const memory = mmap(nullptr, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool   makes  = madvise(memory, MIB, MADV_POPULATE_WRITE) == 0;
    munmap(memory, MIB);
    return makes;
#else
    return false;
#endif
}

// Returns the file, opened, with the first bytes read, as it is for a header.
static std::unique_ptr<mapped_file> open_with_header(size_t n_bytes = MIB) {
    std::string err;
    auto        file = mapped_file::open(PATH, mapped_file::mode::copy, err);
    CHECK(file && file->fetch(n_bytes, {}, err));
    return file;
}

static void sleep_a_moment() {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
}

// Whoever opened the file and waits finds the next part of it in memory, and pages to copy it to; not all of it.
static void test_made_ready() {
    const bool is_cold = drop_from_page_cache();
    const auto file    = open_with_header();
    file->expect_whole({}, true);
    const auto wait_for = [](size_t n_bytes, auto && count) {
        for (int i = 0; i < 1000 && count() < n_bytes; i++) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        return count() >= n_bytes;
    };
    if (system_makes_pages()) {
        check::begin("pages are made ahead of the reader");
        CHECK(wait_for(20 * MIB, [&] { return n_in_memory(file->data(), N_BYTES); }));
        sleep_a_moment();
        CHECK(n_in_memory(file->data(), N_BYTES) <= 32 * MIB);
    }
    if (is_cold) {
        check::begin("the file is read from the disk ahead of the reader");
        CHECK(wait_for(20 * MIB, n_cached));
        sleep_a_moment();
        CHECK(n_cached() < N_BYTES);
    }
}

static void test_beside_decoding() {
    if (!drop_from_page_cache()) {
        return;
    }
    check::begin("nothing is read from the disk ahead where others decode");
    const auto file = open_with_header();
    sleep_a_moment(); // The system itself reads ahead.
    const size_t n_before = n_cached();
    file->expect_whole([] { return true; }, true);
    sleep_a_moment();
    CHECK(n_cached() == n_before);
}

// Beside decoding the page cache has what was read of a file for the header, and the last bytes, which are no whole block; all of one that
// comes again, and of one whose header does not end where reads past the page cache begin.
static void test_past_page_cache(const std::vector<uint8_t> & bytes) {
    const int  fd      = open(PATH, O_RDONLY);
    const bool can_be  = set_past_page_cache(fd, true);
    const auto is_busy = [] { return true; };
    close(fd);
    struct how {
        bool   is_first;
        size_t n_header;
        bool   is_past;
    };
    for (const how & h : { how{ true, MIB, true }, how{ true, MIB + 1, false }, how{ false, MIB, false } }) {
        if (!can_be || !drop_from_page_cache()) {
            return;
        }
        check::begin("what the page cache keeps of a file that is read beside decoding");
        const auto  file = open_with_header(h.n_header);
        std::string err;
        file->expect_whole(is_busy, h.is_first);
        for (size_t n = 0; n < N_BYTES; n += MIB) {
            CHECK(file->fetch(std::min(N_BYTES, n + MIB), {}, err));
        }
        CHECK(memcmp(file->data(), bytes.data(), N_BYTES) == 0);
        CHECK(h.is_past ? n_cached() < N_BYTES / 2 : n_cached() > N_BYTES / 2);
    }
}

#ifdef __linux__
// What was asked of pread at once, at most, whether a call took long, and how long it takes at least.
static size_t                    largest_read = 0;
static bool                      was_slow     = false;
static std::chrono::milliseconds read_lasts{ 0 };

// It takes the place of the library's.
extern "C" ssize_t pread(int fd, void * data, size_t n_bytes, off_t at) {
    largest_read     = std::max(largest_read, n_bytes);
    const auto begun = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(read_lasts);
    const ssize_t n = (ssize_t) syscall(SYS_pread64, fd, data, n_bytes, at);
    was_slow        = was_slow || std::chrono::steady_clock::now() - begun > std::chrono::milliseconds(40);
    return n;
}

// Whoever waits for a file on a slow disk sees that it comes. A quick one has more to do at once.
static void test_size_of_pieces_past_page_cache() {
    for (const bool is_slow : { false, true }) {
        if (!drop_from_page_cache()) {
            return;
        }
        check::begin("pieces of a file that is read past the page cache");
        const auto  file = open_with_header();
        std::string err;
        file->expect_whole([] { return true; }, true);
        read_lasts   = std::chrono::milliseconds(is_slow ? 60 : 0);
        largest_read = 0;
        was_slow     = false;
        CHECK(file->fetch(20 * MIB, {}, err));
        read_lasts = {};
        if (file->is_past_page_cache()) {
            CHECK(is_slow ? largest_read == MIB : largest_read == 8 * MIB || was_slow);
        }
    }
}
#endif

// Files of the system's own are not read past it.
static void test_not_past_page_cache() {
#ifdef __linux__
    check::begin("a file that cannot be read past the page cache");
    const int fd = open("/proc/self/maps", O_RDONLY);
    CHECK(fd >= 0 && !set_past_page_cache(fd, true));
    char byte = 0;
    CHECK(read(fd, &byte, 1) == 1);
    close(fd);
#endif
}

// Whatever is done beside the reading, from the disk and from memory: these are the bytes of the file.
static void test_bytes(const std::vector<uint8_t> & bytes) {
    for (const bool is_decoding : { false, true }) {
        for (const size_t step : { MIB / 16, MIB, 7 * MIB + 1, N_BYTES }) {
            check::begin("a copy has the file's bytes");
            drop_from_page_cache();
            for (int k = 0; k < 2; k++) {
                const auto  file = open_with_header();
                std::string err;
                file->expect_whole([=] { return is_decoding; }, true);
                for (size_t n = 0; n < N_BYTES; n += step) {
                    CHECK(file->fetch(std::min(N_BYTES, n + step), {}, err));
                }
                CHECK(file->n_bytes() == N_BYTES && memcmp(file->data(), bytes.data(), N_BYTES) == 0);
            }
        }
    }
}

// A load is given up at any point.
static void test_given_up() {
    for (const size_t n_read : { (size_t) 0, 30 * MIB }) {
        check::begin("a copy is given up");
        drop_from_page_cache();
        const auto  file = open_with_header();
        std::string err;
        file->expect_whole({}, true);
        CHECK(n_read == 0 || file->fetch(n_read, {}, err));
    }
}

// Another program cuts it off while it is read.
static void test_cut_off(const std::vector<uint8_t> & bytes) {
    for (const bool is_decoding : { false, true }) {
        check::begin("a file that becomes shorter");
        write_file(bytes);
        drop_from_page_cache();
        const auto  file = open_with_header();
        std::string err;
        file->expect_whole([=] { return is_decoding; }, true);
        CHECK(truncate(PATH, 3 * MIB + 5) == 0);
        CHECK(!file->fetch(N_BYTES, {}, err) && err.find("ends at byte 3145733, it had ") == 0);
    }
}

int main() {
    const std::vector<uint8_t> bytes = content();
    write_file(bytes);
    test_made_ready();
    test_beside_decoding();
    test_past_page_cache(bytes);
    test_not_past_page_cache();
#ifdef __linux__
    test_size_of_pieces_past_page_cache();
#endif
    test_bytes(bytes);
    test_given_up();
    test_cut_off(bytes);
    remove(PATH);
    return check::finish();
}

#else

int main() {}

#endif
