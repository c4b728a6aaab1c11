#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "regard/algebra/expr.h"

namespace regard {

/// Closed range of values. Unknown, also possibly NaN, is [-inf, inf].
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
  int64_t query_offset = 0;  ///< query() = row() + query_offset
  double scale = 1;
};

/// The range of a captured tensor over a box of indices (each closed, maybe beyond the tensor: of what lies outside
/// nothing needs to be said). Interval::everything() when unknown or when a NaN is among the values; booleans are 0, 1.
using CaptureRange = std::function<Interval(const std::string& name, const std::vector<Interval>& indices)>;

/// No knowledge of any capture.
Interval unknown_capture(const std::string& name, const std::vector<Interval>& indices);

/// What is known of one value over a tile: a range, and whether it is an exact affine function of the pair,
/// row_factor * row() + column_factor * column() + constant.
struct Range {
  double low = 0, high = 0;
  bool integral = false;  ///< only integers occur, exactly, in float32 too
  bool affine = false;
  double row_factor = 0, column_factor = 0, constant = 0;

  bool unknown() const;  ///< [-inf, inf], maybe NaN
  bool point() const { return low == high; }
};

/// Bounds of one expression over many tiles: the expression is flattened once. One object a thread.
class Analysis {
 public:
  explicit Analysis(const Expr& expr);

  /// Sound bounds: every value that occurs lies inside, computed in float32 as well as in float64.
  Interval bounds(const Tile& tile, const CaptureRange& captures);

  /// Of a boolean: true of no pair, of some (or not known), or of all pairs of the tile. never for an empty tile.
  Truth truth(const Tile& tile, const CaptureRange& captures);

 private:
  const Range& run(const Tile& tile, const CaptureRange& captures);
  Range leaf(const Graph::Entry& entry, const Tile& tile, const CaptureRange& captures) const;

  Graph graph_;
  std::vector<Range> ranges_;
};

/// Sound bounds of `expr` over the tile: every value that occurs lies inside.
Interval bounds(const Expr& expr, const Tile& tile, const CaptureRange& captures);

/// Whether a boolean `keep` is true of all, none or some pairs of the tile; sound (always and never are certain).
Truth truth(const Expr& keep, const Tile& tile, const CaptureRange& captures);

}  // namespace regard
