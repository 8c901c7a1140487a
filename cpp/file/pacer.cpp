#include "file/pacer.h"

#ifdef __linux__
#include <ctime>
#include <sys/resource.h>
#endif

namespace dqrelo {

#ifdef __linux__

// In each period a thread works from its beginning on. All threads have the same periods.
static constexpr int64_t WORK_US   = 1000;
static constexpr int64_t PERIOD_US = 5000;

// How long the core counts as wanted. Then the thread goes on until it is taken off again.
static constexpr int64_t WANTED_US = 200000;

static int64_t now_us() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void sleep_until(int64_t us) {
    const timespec t = { (time_t) (us / 1000000), (long) (us % 1000000 * 1000) };
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
}

// Returns how often this thread was taken off a core though it had more to do.
static int64_t count_preempted() {
    rusage usage = {};
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
}

pacer::pacer(const is_decoding_fn & is_decoding) : is_decoding(is_decoding), n_preempted(is_decoding ? count_preempted() : 0) {}

void pacer::rest() {
    if (!is_decoding || !is_decoding()) {
        return;
    }
    const int64_t now = now_us();
    const int64_t n   = count_preempted();
    if (n != n_preempted) {
        n_preempted    = n;
        paced_until_us = now + WANTED_US;
    }
    if (now < paced_until_us && now - work_begun_at_us >= WORK_US) {
        work_begun_at_us = (now / PERIOD_US + 1) * PERIOD_US;
        sleep_until(work_begun_at_us);
    }
}

#else

pacer::pacer(const is_decoding_fn & is_decoding) : is_decoding(is_decoding) {}

void pacer::rest() {}

#endif

} // namespace dqrelo
