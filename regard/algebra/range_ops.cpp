#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "regard/algebra/range_parts.h"
#include "regard/algebra/scalar.h"

namespace regard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargestFactor = 1ull << 40;  // factors up to here keep affine forms exact in double

Range truth_range(bool can_be_false, bool can_be_true) {
  return exact_range(can_be_false ? 0 : 1, can_be_true ? 1 : 0, true);
}

/// The affine form, when its range is exact in the type; tighter than the operands' ranges on their own.
Range close_affine(Type type, double row, double column, double constant, const Tile& tile, const Range& otherwise) {
  const bool small =
      std::abs(row) < kLargestFactor && std::abs(column) < kLargestFactor && std::abs(constant) < kLargestFactor;
  if (!small) return otherwise;
  const Range form = affine_range(row, column, constant, tile);
  const Range closed = closed_range(type, form, true);
  return closed.integral ? form : otherwise;
}

Range multiply(Type type, const Range& a, const Range& b, const Tile& tile) {
  const Range plain = hull_range({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
  const Range closed = closed_range(type, plain, a.integral && b.integral);
  if (!a.affine || !b.affine || !(a.point() || b.point())) return closed;
  const Range& form = a.point() ? b : a;
  const double factor = a.point() ? a.low : b.low;
  return close_affine(type, factor * form.row_factor, factor * form.column_factor, factor * form.constant, tile,
                      closed);
}

Range smaller(Type type, const Range& a, const Range& b) {
  if (type == Type::real && (a.unknown() || b.unknown())) return everything_range();
  if (a.high <= b.low) return a;
  if (b.high <= a.low) return b;
  return exact_range(std::min(a.low, b.low), std::min(a.high, b.high), a.integral && b.integral);
}

Range negate(Type type, const Range& a, const Tile& tile) {
  if (type == Type::integer || a.integral) return multiply(type, a, exact_range(-1, -1, true), tile);
  return exact_range(-a.high, -a.low);
}

Range larger(Type type, const Range& a, const Range& b) {
  if (type == Type::real && (a.unknown() || b.unknown())) return everything_range();
  if (a.low >= b.high) return a;
  if (b.low >= a.high) return b;
  return exact_range(std::max(a.low, b.low), std::max(a.high, b.high), a.integral && b.integral);
}

Range magnitude(Type type, const Range& a, const Tile& tile) {
  if (a.unknown()) return a;
  if (a.low >= 0) return a;
  if (a.high <= 0) return negate(type, a, tile);
  const Range folded = exact_range(0, std::max(-a.low, a.high), a.integral);
  return type == Type::integer ? closed_range(type, folded, true) : folded;
}

/// An increasing function of a real.
Range increasing(Op op, const Range& a) {
  if (a.unknown()) return a;
  const Range plain = hull_range({apply_scalar(op, Type::real, a.low), apply_scalar(op, Type::real, a.high)});
  return plain.unknown() ? plain : function_range(plain.low, plain.high);
}

/// a - b over the tile: exact when both are affine.
Range difference(const Range& a, const Range& b, const Tile& tile) {
  if (a.affine && b.affine) {
    return affine_range(a.row_factor - b.row_factor, a.column_factor - b.column_factor, a.constant - b.constant, tile);
  }
  return hull_range({a.low - b.high, a.high - b.low});
}

Range compare(Op op, const Range& a, const Range& b, const Tile& tile) {
  if (a.unknown() || b.unknown()) return truth_range(true, true);
  Range d = difference(a, b, tile);
  if (d.unknown()) {
    // inf - inf: compare the ends themselves.
    const bool less = a.high < b.low;
    const bool more = a.low > b.high;
    d = less ? exact_range(-1, -1) : more ? exact_range(1, 1) : exact_range(-1, 1);
  }
  switch (op) {
    case Op::lt:
      return truth_range(d.high >= 0, d.low < 0);
    case Op::le:
      return truth_range(d.high > 0, d.low <= 0);
    case Op::gt:
      return truth_range(d.low <= 0, d.high > 0);
    case Op::ge:
      return truth_range(d.low < 0, d.high >= 0);
    case Op::eq:
      return truth_range(d.low < 0 || d.high > 0, d.low <= 0 && d.high >= 0);
    default:
      return truth_range(d.low <= 0 && d.high >= 0, d.low < 0 || d.high > 0);  // ne
  }
}

Range choose(const Range& condition, const Range& a, const Range& b) {
  if (condition.low > 0) return a;
  if (condition.high < 1) return b;
  return exact_range(std::min(a.low, b.low), std::max(a.high, b.high), a.integral && b.integral);
}

Range convert(Type to, const Range& a) {
  if (to == Type::real) {
    // Beyond 2^24 an integer may be rounded.
    if (a.low >= -kLargestExact && a.high <= kLargestExact) return a;
    return a.unknown() ? a : rounded_range(a.low, a.high);
  }
  if (a.integral) return a;
  return is_finite(a) ? closed_range(Type::integer, exact_range(std::trunc(a.low), std::trunc(a.high)), true)
                      : everything_range();
}

}  // namespace

Range exact_range(double low, double high, bool integral) {
  if (std::isnan(low) || std::isnan(high)) return everything_range();
  Range range;
  range.low = low;
  range.high = high;
  range.integral = integral;
  if (integral && low == high) {
    range.affine = true;
    range.constant = low;
  }
  return range;
}

Range hull_range(std::initializer_list<double> values) {
  double low = kInfinity, high = -kInfinity;
  for (const double value : values) {
    if (std::isnan(value)) return everything_range();
    low = std::min(low, value);
    high = std::max(high, value);
  }
  return exact_range(low, high);
}

Range closed_range(Type type, const Range& result, bool integral_operands) {
  if (result.unknown()) return everything_range();
  if (type == Type::integer) {
    const bool wraps =
        result.low < std::numeric_limits<int32_t>::min() || result.high > std::numeric_limits<int32_t>::max();
    return wraps ? everything_range() : exact_range(result.low, result.high, true);
  }
  if (integral_operands && result.low >= -kLargestExact && result.high <= kLargestExact) {
    return exact_range(result.low, result.high, true);
  }
  return rounded_range(result.low, result.high);
}

Range add_ranges(Type type, const Range& a, const Range& b, double sign, const Tile& tile) {
  const Range plain =
      sign > 0 ? hull_range({a.low + b.low, a.high + b.high}) : hull_range({a.low - b.high, a.high - b.low});
  const Range closed = closed_range(type, plain, a.integral && b.integral);
  if (!a.affine || !b.affine) return closed;
  return close_affine(type, a.row_factor + sign * b.row_factor, a.column_factor + sign * b.column_factor,
                      a.constant + sign * b.constant, tile, closed);
}

bool is_finite(const Range& range) { return std::isfinite(range.low) && std::isfinite(range.high); }

double as_float(double value) {
  if (std::abs(value) <= FLT_MAX) return static_cast<double>(static_cast<float>(value));
  return std::isnan(value) ? value : std::copysign(kInfinity, value);
}

bool Range::unknown() const { return low == -kInfinity && high == kInfinity; }

Range everything_range() {
  Range range;
  range.low = -kInfinity;
  range.high = kInfinity;
  return range;
}

Range affine_range(double row_factor, double column_factor, double constant, const Tile& tile) {
  const double r0 = row_factor * static_cast<double>(tile.row_begin),
               r1 = row_factor * static_cast<double>(tile.row_end - 1);
  const double c0 = column_factor * static_cast<double>(tile.column_begin);
  const double c1 = column_factor * static_cast<double>(tile.column_end - 1);
  Range range;
  range.low = std::min(r0, r1) + std::min(c0, c1) + constant;
  range.high = std::max(r0, r1) + std::max(c0, c1) + constant;
  range.integral = range.affine = true;
  range.row_factor = row_factor;
  range.column_factor = column_factor;
  range.constant = constant;
  return range;
}

Range rounded_range(double low, double high) {
  // Rounding is monotone: between the rounded ends lies the rounded value of everything between the ends.
  low = std::min(low, as_float(low));
  high = std::max(high, as_float(high));
  // Numbers below the least normal float32 may be flushed to 0.
  if (low > 0 && low < FLT_MIN) low = 0;
  if (high < 0 && high > -FLT_MIN) high = 0;
  return exact_range(low, high);
}

Range function_range(double low, double high) {
  return rounded_range(low - std::abs(low) * kFunctionError - FLT_MIN,
                       high + std::abs(high) * kFunctionError + FLT_MIN);
}

Range range_of(Op op, Type type, const std::vector<Expr>& operands, const Range* args, const Tile& tile) {
  const Range &a = args[0], &b = args[operands.size() > 1 ? 1 : 0];
  switch (op) {
    case Op::add:
      return add_ranges(type, a, b, 1, tile);
    case Op::sub:
      return add_ranges(type, a, b, -1, tile);
    case Op::mul:
      return multiply(type, a, b, tile);
    case Op::div:
      return divide_ranges(a, b);
    case Op::floor_div:
      return floor_divide_ranges(type, a, b);
    case Op::mod:
      return modulo_ranges(type, a, b, tile);
    case Op::neg:
      return negate(type, a, tile);
    case Op::min:
      return smaller(type, a, b);
    case Op::max:
      return larger(type, a, b);
    case Op::abs:
      return magnitude(type, a, tile);
    case Op::floor:
      return a.integral ? a : exact_range(std::floor(a.low), std::floor(a.high));
    case Op::exp:
    case Op::tanh:
    case Op::sigmoid:
      return increasing(op, a);
    case Op::log:
    case Op::sqrt:
      return a.low < 0 ? everything_range() : increasing(op, a);
    case Op::pow:
      return power_ranges(type, a, b);
    case Op::cos:
    case Op::sin:
      return is_finite(a) ? function_range(-1, 1) : everything_range();
    case Op::lt:
    case Op::le:
    case Op::gt:
    case Op::ge:
    case Op::eq:
    case Op::ne:
      return compare(op, a, b, tile);
    case Op::logical_and:
      return truth_range(a.low < 1 || b.low<1, a.high> 0 && b.high > 0);
    case Op::logical_or:
      return truth_range(a.low < 1 && b.low<1, a.high> 0 || b.high > 0);
    case Op::logical_not:
      return truth_range(a.high > 0, a.low < 1);
    case Op::where:
      return choose(a, b, args[2]);
    case Op::cast:
      return convert(type, a);
    default:
      return everything_range();
  }
}

}  // namespace regard
