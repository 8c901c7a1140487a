// delta-blends.h: the blends that have a name. A blend is several deltas, by name, each with its scale.
#pragma once

#include "blend-spec.h"
#include "server-common.h"

#include <mutex>
#include <optional>
#include <string>
#include <vector>

// Any thread may call it.
class server_delta_blends {
public:
    // Returns false if the name is taken by another blend, or there are as many as there may be.
    bool add(const dqrelo_blend & blend);
    bool remove(const std::string & name); // Returns false if there is none of that name.

    std::optional<dqrelo_blend> find(const std::string & name) const;
    std::vector<dqrelo_blend>   all() const; // in the order in which they were added

private:
    static constexpr size_t N_MAX = 1024;

    mutable std::mutex        mutex;
    std::vector<dqrelo_blend> blends;
};

// Reads [{"name": NAME, "scale": NUMBER}, ...], of which a scale may be left out. Throws std::invalid_argument.
std::vector<dqrelo_blend_part> server_delta_parts_of(const json & list, float max_scale);

// The same, the other way round.
json server_delta_parts_json(const std::vector<dqrelo_blend_part> & parts);
