#pragma once

#include <cstdint>

#include "regard/kernels/cpu/tile.h"

namespace regard::kernels {

/// a / b rounded up; a to the next multiple of b. For a >= 0, b > 0.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// Up to whole vectors. Contiguous rows of such a width are vector lanes in place.
constexpr int64_t padded_width(int64_t width) { return round_up(width, kLaneUnit); }

}  // namespace regard::kernels
