#include "file/verified.h"

#include "file/delta-file.h"

#include <mutex>
#include <unordered_set>

namespace dqrelo {

// More than a server has deltas; past it the set starts anew, which costs time only.
static constexpr size_t N_VERIFIED_MAX = 100000;

bool verify_once(const delta_file & file, const is_aborted_fn & is_aborted, std::string & err) {
    static std::mutex                      mutex;
    static std::unordered_set<std::string> verified;
    const std::string &                    identity = file.identity();
    if (!identity.empty()) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (verified.count(identity) > 0) {
            return true;
        }
    }
    if (!file.verify(is_aborted, err)) {
        return false;
    }
    if (!identity.empty()) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (verified.size() == N_VERIFIED_MAX) {
            verified.clear();
        }
        verified.insert(identity);
    }
    return true;
}

} // namespace dqrelo
