// test-pacer.cpp: who is paced leaves its core to others that want it, and nobody else.
#include "file/pacer.h"
#include "support/check.h"

#include <atomic>
#include <chrono>
#include <thread>

#ifdef __linux__
#include <sched.h>
#include <sys/resource.h>
#endif

using namespace dqrelo;

#ifdef __linux__

// Returns how often this thread gave its core away.
static long n_rests() {
    rusage usage = {};
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

// Works for at most some seconds, until the pacer made it sleep n times. Returns how often it did.
static long work(bool is_paced, long n) {
    using clock     = std::chrono::steady_clock;
    const auto end  = clock::now() + std::chrono::seconds(is_paced ? 20 : 1);
    const long from = n_rests();
    pacer      pace([=] { return is_paced; });
    for (volatile unsigned sum = 0; n_rests() - from < n && clock::now() < end;) {
        pace.rest();
        for (unsigned i = 0; i < 100000; i++) {
            sum = sum + i;
        }
    }
    return n_rests() - from;
}

// Two threads that want one core.
static void test_beside_another() {
    cpu_set_t all, one;
    sched_getaffinity(0, sizeof(all), &all);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof(one), &one); // What is started from here on has the same core.
    std::atomic<bool> is_over{ false };
    std::thread       other([&] {
        while (!is_over) {
        }
    });
    check::begin("a paced thread sleeps where another wants its core");
    CHECK(work(true, 20) >= 20);
    check::begin("one that is not paced does not");
    CHECK(work(false, 20) < 20);
    is_over = true;
    other.join();
    sched_setaffinity(0, sizeof(all), &all);
}

#else

static void test_beside_another() {}

#endif

int main() {
    test_beside_another();
    return check::finish();
}
