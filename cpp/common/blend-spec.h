// blend-spec.h: several deltas, each with its scale, as a text: NAME*SCALE+NAME*SCALE.
//
// The text is cut at every '+', and each piece at its last '*', so it can be read in one way only. A name with a '+' in it cannot stand in
// such a text; a JSON list of parts has no such limit.
#pragma once

#include <string>
#include <vector>

struct dqrelo_blend_part {
    std::string name; // of a delta
    float       scale = 1.0f;
};

struct dqrelo_blend {
    std::string                    name;
    std::vector<dqrelo_blend_part> parts;
    size_t                         lead = 0; // The part whose chat template, end tokens and sampling defaults the blend has.
};

// Reads a text. Throws std::invalid_argument with one line that begins with `what`, a name for the text in errors.
std::vector<dqrelo_blend_part> dqrelo_parse_blend(const std::string & text, const std::string & what, float max_scale);

// Throws std::invalid_argument unless there are at most DQRELO_MAX_PARTS parts, no two of one name, with finite scales of at most
// max_scale.
void dqrelo_check_blend(const std::vector<dqrelo_blend_part> & parts, const std::string & what, float max_scale);

std::string dqrelo_blend_text(const std::vector<dqrelo_blend_part> & parts);

// Reads NAME=SPEC[,template=PART], as --blend has it. The scales are checked by dqrelo_check_blend later, when their bound is known.
dqrelo_blend dqrelo_parse_named_blend(const std::string & text, const std::string & what);

// Sets the lead part. Throws std::invalid_argument unless it is one of the parts.
void dqrelo_set_lead(dqrelo_blend & blend, const std::string & part, const std::string & what);
