#pragma once

#include <vector>

#include "regard/ops/edited.h"
#include "regard/ops/tap_name.h"

namespace regard::ops {

/// The reductions that need the weights of whole rows, one pass over stripes for all of them.
std::vector<at::Tensor> measure_in_stripes(const Call& call, bool at_once, const std::vector<TapName>& taps,
                                           const std::vector<WeightEdit>& edits);

}  // namespace regard::ops
