#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "regard/algebra/expr.h"

namespace regard {

/// Closed range of values. Unknown is [-inf, inf].
struct Interval {
  double low, high;
  static Interval everything();
  static Interval point(double value) { return {value, value}; }
};

enum class Truth : uint8_t { never, sometimes, always };

/// A rectangle of pairs of one (batch, head): local rows [row_begin, row_end) and columns [column_begin, column_end),
/// with what the leaves mean there.
struct Tile {
  int64_t batch = 0, head = 0;
  int64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 0;
  int64_t batches = 1, heads = 1, queries = 0, keys = 0;
  int64_t query_offset = 0;     ///< query() = row() + query_offset
  double scale = 1;
};

/// The range of a captured tensor over a box of indices (each closed); may return Interval::everything().
using CaptureRange = std::function<Interval(const std::string& name, const std::vector<Interval>& indices)>;

/// Sound bounds of `expr` over the tile: every value that occurs lies inside.
Interval bounds(const Expr& expr, const Tile& tile, const CaptureRange& captures);

/// Whether a boolean `keep` is true of all, none or some pairs of the tile; sound (always and never are certain).
Truth truth(const Expr& keep, const Tile& tile, const CaptureRange& captures);

}  // namespace regard
