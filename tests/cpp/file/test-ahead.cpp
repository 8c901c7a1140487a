// test-ahead.cpp: work that is done ahead of a reader: what it comes to, how far ahead, and when it ends.
#include "file/ahead.h"
#include "support/check.h"

#include <atomic>
#include <chrono>
#include <thread>

using namespace dqrelo;

static constexpr size_t MIB = (size_t) 1 << 20;
static constexpr size_t END = 64 * MIB + 12345;

// Says how far the work came, and whether it was done in sequence, by small pieces.
struct progress {
    std::atomic<size_t> at;
    std::atomic<bool>   is_good{ true };

    explicit progress(size_t begin) : at(begin) {}

    bool work(size_t offset_bytes, size_t n_bytes) {
        is_good = is_good && offset_bytes == at && n_bytes > 0 && n_bytes <= MIB;
        at += n_bytes;
        return true;
    }
    // Waits until n_bytes are done. Returns false if that does not come about.
    bool wait_for(size_t n_bytes) const {
        for (int i = 0; i < 1000 && at < n_bytes; i++) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        return at >= n_bytes;
    }
};

// It does what will be read next, and no more: a load that is given up has not done all of it.
static void test_distance() {
    for (const size_t begin : { (size_t) 0, MIB / 2 }) {
        progress        done(begin);
        ahead_of_reader ahead(begin, END, [&](size_t at, size_t n) { return done.work(at, n); }, {});
        for (size_t n_read = 0; n_read <= 32 * MIB; n_read += 8 * MIB) {
            check::begin("work is done ahead of the reader");
            ahead.read(n_read);
            CHECK(done.wait_for(n_read + 20 * MIB));
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            CHECK(done.at <= n_read + 26 * MIB);
        }
        check::begin("all is done, a piece at a time");
        ahead.read(END);
        CHECK(done.wait_for(END));
        CHECK(done.at == END && done.is_good);
    }
}

static void test_refusal() {
    check::begin("what is not to be had is not asked for again");
    std::atomic<int> n_asked{ 0 };
    ahead_of_reader  ahead(0, END,
                           [&](size_t, size_t) {
                              n_asked++;
                              return false;
                           },
                           {});
    ahead.read(END);
    for (int i = 0; i < 1000 && n_asked == 0; i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    CHECK(n_asked == 1);
}

// Nobody has to read to the end, and there may be nothing to do.
static void test_end() {
    for (const size_t end : { (size_t) 0, (size_t) 1, END }) {
        check::begin("it ends where it is");
        progress done(0);
        {
            const ahead_of_reader ahead(0, end, [&](size_t at, size_t n) { return done.work(at, n); }, [] { return true; });
        }
        CHECK(done.at <= 26 * MIB && done.at <= end && done.is_good);
    }
}

int main() {
    test_distance();
    test_refusal();
    test_end();
    return check::finish();
}
