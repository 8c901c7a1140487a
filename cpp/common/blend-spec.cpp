#include "blend-spec.h"

#include "dqrelo.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

static const size_t N_TEXT_MAX = 2048; // bytes: eight names of the largest size, and their scales

static const char * const EXPECTED = ": expected NAME*SCALE+NAME*SCALE, such as math*0.6+words*0.4";

// A decimal number: a sign, digits, a point, digits. No exponent, whose sign would look like a separator, and no "nan" or "inf".
static bool is_decimal(const std::string & text) {
    const size_t first = !text.empty() && text[0] == '-' ? 1 : 0;
    const bool   is_ok = text.find_first_not_of("0123456789.", first) == std::string::npos;
    return is_ok && std::count(text.begin(), text.end(), '.') <= 1 && text.find_first_of("0123456789") != std::string::npos;
}

std::vector<dqrelo_blend_part> dqrelo_parse_blend(const std::string & text, const std::string & what, float max_scale) {
    if (text.size() > N_TEXT_MAX) {
        throw std::invalid_argument(what + ": a blend of " + std::to_string(text.size()) + " bytes, expected at most " +
                                    std::to_string(N_TEXT_MAX));
    }
    std::vector<dqrelo_blend_part> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t      end   = std::min(text.find('+', begin), text.size());
        const std::string piece = text.substr(begin, end - begin);
        const size_t      star  = piece.rfind('*');
        if (star == std::string::npos || star == 0) {
            throw std::invalid_argument(what + " '" + text + "'" + EXPECTED);
        }
        const std::string number = piece.substr(star + 1);
        if (!is_decimal(number)) {
            throw std::invalid_argument(what + " '" + text + "': the scale '" + number + "' of '" + piece.substr(0, star) +
                                        "' is no decimal number");
        }
        parts.push_back({ piece.substr(0, star), std::strtof(number.c_str(), nullptr) });
        begin = end + 1;
    }
    dqrelo_check_blend(parts, what, max_scale);
    return parts;
}

void dqrelo_check_blend(const std::vector<dqrelo_blend_part> & parts, const std::string & what, float max_scale) {
    if (parts.size() > DQRELO_MAX_PARTS) {
        throw std::invalid_argument(what + ": a blend of " + std::to_string(parts.size()) + " deltas, expected at most " +
                                    std::to_string(DQRELO_MAX_PARTS));
    }
    for (auto part = parts.begin(); part != parts.end(); ++part) {
        if (!(std::fabs(part->scale) <= std::min(max_scale, FLT_MAX))) {
            char range[64];
            snprintf(range, sizeof(range), "%g to %g (--delta-max-scale)", -max_scale, max_scale);
            throw std::invalid_argument(what + ": the scale of '" + part->name + "' is not a number from " + range);
        }
        if (std::any_of(parts.begin(), part, [&](const dqrelo_blend_part & other) { return other.name == part->name; })) {
            throw std::invalid_argument(what + ": '" + part->name + "' is twice in the blend. Give it once, with the sum of the scales");
        }
    }
}

std::string dqrelo_blend_text(const std::vector<dqrelo_blend_part> & parts) {
    std::string text;
    for (const auto & part : parts) {
        char scale[32];
        snprintf(scale, sizeof(scale), "*%.7g", part.scale);
        text += (text.empty() ? "" : "+") + part.name + scale;
    }
    return text;
}

dqrelo_blend dqrelo_parse_named_blend(const std::string & text, const std::string & what) {
    static const std::string TEMPLATE = ",template=";
    const size_t             eq       = text.find('=');
    const size_t             comma    = text.rfind(TEMPLATE);
    if (eq == std::string::npos || eq == 0 || (comma != std::string::npos && comma < eq)) {
        throw std::invalid_argument(what + " '" + text + "': expected NAME=SPEC[,template=PART], such as mix=math*0.6+words*0.4");
    }
    dqrelo_blend blend;
    blend.name  = text.substr(0, eq);
    blend.parts = dqrelo_parse_blend(text.substr(eq + 1, comma == std::string::npos ? comma : comma - eq - 1), what, FLT_MAX);
    if (comma != std::string::npos) {
        dqrelo_set_lead(blend, text.substr(comma + TEMPLATE.size()), what);
    }
    return blend;
}

void dqrelo_set_lead(dqrelo_blend & blend, const std::string & part, const std::string & what) {
    const auto found = std::find_if(blend.parts.begin(), blend.parts.end(), [&](const auto & other) { return other.name == part; });
    if (found == blend.parts.end()) {
        throw std::invalid_argument(what + ": the template of '" + part + "', which is no part of the blend");
    }
    blend.lead = (size_t) (found - blend.parts.begin());
}
