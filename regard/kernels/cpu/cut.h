#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "regard/kernels/cpu/rounding.h"

namespace regard::kernels {

/// A length cut into parts of nearly one size, each a multiple of `unit` but the last; or into blocks of one size
/// first, each cut into `pieces` of one size, so that no part reaches over the end of a block; or where a list says.
struct Cut {
  int64_t length = 0, unit = 1, parts = 0;
  int64_t block = 0, pieces = 1, piece = 0;                      ///< block 0: none
  std::shared_ptr<const std::vector<int64_t>> begins = nullptr;  ///< of every part, and the length; null: none

  /// The fewest parts of at most `most` (a multiple of unit).
  static Cut at_most(int64_t length, int64_t unit, int64_t most) {
    return {length, unit, ceil_div(length, most), 0, 1, 0, nullptr};
  }
  /// The fewest parts of at most `most` (a multiple of unit) inside blocks.
  static Cut inside(int64_t length, int64_t block, int64_t unit, int64_t most) {
    const int64_t piece = round_up(ceil_div(block, ceil_div(block, most)), unit), pieces = ceil_div(block, piece);
    return {length, unit, length / block * pieces + ceil_div(length % block, piece), block, pieces, piece, nullptr};
  }
  /// Each of the ranges between `starts` (0 first, the length last) cut as `at_most` cuts it.
  static Cut between(const std::vector<int64_t>& starts, int64_t unit, int64_t most) {
    std::vector<int64_t> begins;
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      const Cut own = at_most(starts[s + 1] - starts[s], unit, most);
      for (int64_t part = 0; part < own.parts; ++part) begins.push_back(starts[s] + own.begin(part));
    }
    const auto parts = static_cast<int64_t>(begins.size());
    begins.push_back(starts.back());
    return {starts.back(), unit, parts, 0, 1, 0, std::make_shared<const std::vector<int64_t>>(std::move(begins))};
  }
  int64_t begin(int64_t part) const {
    if (begins != nullptr) return (*begins)[static_cast<size_t>(part)];
    if (block > 0) return std::min(length, part / pieces * block + part % pieces * piece);
    const int64_t units = ceil_div(length, unit);
    return std::min(length, part * units / parts * unit);
  }
  int64_t end(int64_t part) const { return begin(part + 1); }
};

}  // namespace regard::kernels
