#pragma once

#include <algorithm>
#include <cstdint>

namespace regard::kernels {

/// A length cut into parts of nearly one size, each a multiple of `unit` but the last.
struct Cut {
  int64_t length = 0, unit = 1, parts = 0;

  /// The fewest parts of at most `most` (a multiple of unit).
  static Cut at_most(int64_t length, int64_t unit, int64_t most) { return {length, unit, (length + most - 1) / most}; }
  int64_t begin(int64_t part) const {
    const int64_t units = (length + unit - 1) / unit;
    return std::min(length, part * units / parts * unit);
  }
  int64_t end(int64_t part) const { return begin(part + 1); }
};

}  // namespace regard::kernels
