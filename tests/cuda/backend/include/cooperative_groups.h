// cooperative_groups.h: groups that span a grid. The device says that it cannot launch them, so this is compiled and never run.
#pragma once

#include "cuemu.h"

namespace cooperative_groups {

struct grid_group {
    void sync() const { cuemu::fail("a barrier of the whole grid is not emulated"); }
};
inline grid_group this_grid() {
    return {};
}

} // namespace cooperative_groups
