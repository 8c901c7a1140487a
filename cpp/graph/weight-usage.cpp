#include "graph/weight-usage.h"

#include <algorithm>

namespace dqrelo {

read_shape read_shape::of(const weight_read & read, const composed_layout & layout) {
    read_shape s;
    s.weight      = read.weight;
    s.form        = read.form;
    s.merged_copy = read.merged_copy;
    s.layout      = layout;
    std::copy_n(read.node->ne, 4, s.node);
    if (read.x) {
        std::copy_n(read.x->ne, 4, s.x);
    }
    if (read.ids) {
        std::copy_n(read.ids->ne, 2, s.ids);
    }
    return s;
}

bool read_shape::operator==(const read_shape & o) const {
    return weight == o.weight && form == o.form && merged_copy == o.merged_copy && std::equal(node, node + 4, o.node) &&
           std::equal(x, x + 4, o.x) && std::equal(ids, ids + 2, o.ids) && layout.kind == o.layout.kind &&
           layout.one_delta == o.layout.one_delta && std::equal(layout.stride, layout.stride + 4, o.layout.stride);
}

} // namespace dqrelo
