#include "regard/algebra/interval.h"

#include <cmath>
#include <limits>

#include "regard/algebra/range_ops.h"
#include "regard/base/error.h"

namespace regard {
namespace {

bool empty(const Tile& tile) { return tile.row_begin >= tile.row_end || tile.column_begin >= tile.column_end; }

/// A number that the kernel may hold as float32.
Range real_range(double low, double high) {
  if (!(low <= high)) return everything_range();  // NaN too
  if (low == high && low == std::floor(low) && std::abs(low) <= 1 << 24) return affine_range(0, 0, low, {});
  return rounded_range(low, high);
}

Range integer_range(double low, double high) {
  low = std::ceil(low);
  high = std::floor(high);
  const bool fits =
      low <= high && low >= std::numeric_limits<int32_t>::min() && high <= std::numeric_limits<int32_t>::max();
  if (!fits) return everything_range();
  if (low == high) return affine_range(0, 0, low, {});
  return {low, high, true};
}

Range boolean_range(double low, double high) {
  const bool always = low > 0, never = low >= 0 && high < 1;
  return {always ? 1.0 : 0.0, never ? 0.0 : 1.0, true};
}

Range typed_range(Type type, double low, double high) {
  if (type == Type::real) return real_range(low, high);
  return type == Type::integer ? integer_range(low, high) : boolean_range(low, high);
}

Range fixed(int64_t value) { return integer_range(static_cast<double>(value), static_cast<double>(value)); }

}  // namespace

Interval Interval::everything() {
  return {-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
}

Interval unknown_capture(const std::string&, const std::vector<Interval>&) { return Interval::everything(); }

Analysis::Analysis(const Expr& expr) : graph_(flatten({expr})), ranges_(graph_.entries.size()) { expr.node(); }

Range Analysis::leaf(const Graph::Entry& entry, const Tile& tile, const CaptureRange& captures) const {
  const Node& node = entry.expr.node();
  switch (node.op) {
    case Op::constant:
      return typed_range(node.type, node.number, node.number);
    case Op::scale:
      return real_range(tile.scale, tile.scale);
    case Op::batch:
      return fixed(tile.batch);
    case Op::head:
      return fixed(tile.head);
    case Op::row:
      return affine_range(1, 0, 0, tile);
    case Op::query:
      return affine_range(1, 0, static_cast<double>(tile.query_offset), tile);
    case Op::key:
    case Op::column:
      return affine_range(0, 1, 0, tile);
    case Op::batches:
      return fixed(tile.batches);
    case Op::heads:
      return fixed(tile.heads);
    case Op::queries:
      return fixed(tile.queries);
    case Op::keys:
      return fixed(tile.keys);
    case Op::capture: {
      std::vector<Interval> indices;
      for (const int arg : entry.args) {
        const Range& range = ranges_[static_cast<size_t>(arg)];
        indices.push_back({range.low, range.high});
      }
      const Interval found = captures(node.name, indices);
      return typed_range(node.type, found.low, found.high);
    }
    default:
      return everything_range();  // dot
  }
}

const Range& Analysis::run(const Tile& tile, const CaptureRange& captures) {
  for (size_t i = 0; i < ranges_.size(); ++i) {
    const Graph::Entry& entry = graph_.entries[i];
    if (entry.args.empty() || entry.expr.op() == Op::capture) {
      ranges_[i] = leaf(entry, tile, captures);
      continue;
    }
    Range args[3];
    for (size_t a = 0; a < entry.args.size(); ++a) args[a] = ranges_[static_cast<size_t>(entry.args[a])];
    ranges_[i] = range_of(entry.expr.op(), entry.expr.type(), entry.expr.node().args, args, tile);
  }
  return ranges_[static_cast<size_t>(graph_.roots[0])];
}

Interval Analysis::bounds(const Tile& tile, const CaptureRange& captures) {
  if (empty(tile)) return Interval::everything();
  const Range& range = run(tile, captures);
  return {range.low, range.high};
}

Truth Analysis::truth(const Tile& tile, const CaptureRange& captures) {
  const Type type = graph_.entries[static_cast<size_t>(graph_.roots[0])].expr.type();
  if (type != Type::boolean) fail("truth", "an expression of type bool", name_of(type));
  if (empty(tile)) return Truth::never;
  const Range& range = run(tile, captures);
  if (range.low >= 1) return Truth::always;
  return range.high <= 0 ? Truth::never : Truth::sometimes;
}

Interval bounds(const Expr& expr, const Tile& tile, const CaptureRange& captures) {
  return Analysis(expr).bounds(tile, captures);
}

Truth truth(const Expr& keep, const Tile& tile, const CaptureRange& captures) {
  return Analysis(keep).truth(tile, captures);
}

}  // namespace regard
