#include "delta-blends.h"

#include "dqrelo.h"

#include <algorithm>
#include <stdexcept>

bool server_delta_blends::add(const dqrelo_blend & blend) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto                        has_name = [&](const dqrelo_blend & other) { return other.name == blend.name; };
    if (blends.size() >= N_MAX || std::any_of(blends.begin(), blends.end(), has_name)) {
        return false;
    }
    blends.push_back(blend);
    return true;
}

bool server_delta_blends::remove(const std::string & name) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(blends.begin(), blends.end(), [&](const dqrelo_blend & blend) { return blend.name == name; });
    if (found == blends.end()) {
        return false;
    }
    blends.erase(found);
    return true;
}

std::optional<dqrelo_blend> server_delta_blends::find(const std::string & name) const {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(blends.begin(), blends.end(), [&](const dqrelo_blend & blend) { return blend.name == name; });
    return found == blends.end() ? std::nullopt : std::optional<dqrelo_blend>(*found);
}

std::vector<dqrelo_blend> server_delta_blends::all() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return blends;
}

static const char * const EXPECTED = "\"deltas\" must be a list of {\"name\": NAME, \"scale\": NUMBER}";

std::vector<dqrelo_blend_part> server_delta_parts_of(const json & list, float max_scale) {
    if (!list.is_array()) {
        throw std::invalid_argument(EXPECTED);
    }
    if (list.size() > DQRELO_MAX_PARTS) {
        throw std::invalid_argument(string_format("\"deltas\": a blend of %zu deltas, expected at most %d", list.size(), DQRELO_MAX_PARTS));
    }
    std::vector<dqrelo_blend_part> parts;
    for (const json & item : list) {
        if (!item.is_object() || !item.contains("name") || !item.at("name").is_string()) {
            throw std::invalid_argument(EXPECTED);
        }
        const json scale = item.contains("scale") ? item.at("scale") : json(1.0);
        if (!scale.is_number()) {
            throw std::invalid_argument(EXPECTED);
        }
        parts.push_back({ item.at("name").get<std::string>(), (float) scale.get<double>() });
    }
    dqrelo_check_blend(parts, "\"deltas\"", max_scale);
    return parts;
}

json server_delta_parts_json(const std::vector<dqrelo_blend_part> & parts) {
    json list = json::array();
    for (const auto & part : parts) {
        list.push_back({ { "name", part.name }, { "scale", part.scale } });
    }
    return list;
}
