// utf8-path.h: paths are UTF-8 everywhere in this project, on Windows too, where std::filesystem takes narrow text for another code page.
#pragma once

#include <filesystem>
#include <string>

namespace dqrelo {

inline std::filesystem::path utf8_path(const std::string & text) {
    return std::filesystem::u8path(text);
}

inline std::string utf8_text(const std::filesystem::path & path) {
    return path.u8string();
}

} // namespace dqrelo
