#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "regard/algebra/expr.h"

namespace regard {

/// The pairs with low <= key() - query() <= high.
struct Band {
  int64_t low = std::numeric_limits<int32_t>::min();
  int64_t high = std::numeric_limits<int32_t>::max();
};

/// The band that a mask is: a causal mask, a window, or any conjunction of such comparisons. None for other masks.
std::optional<Band> band_of(const Expr& keep);

}  // namespace regard
