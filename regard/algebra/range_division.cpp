#include <algorithm>
#include <cmath>

#include "regard/algebra/range_parts.h"
#include "regard/algebra/scalar.h"

namespace regard {
namespace {

/// Integers so small that a quotient rounded to float32 never reaches the next integer.
bool divides_exactly(const Range& a, const Range& b) {
  const double limit = kLargestExact / 4;
  return a.integral && b.integral && a.low >= -limit && a.high <= limit;
}

}  // namespace

Range divide_ranges(const Range& a, const Range& b) {
  if (b.low <= 0 && b.high >= 0) return everything_range();
  const Range plain = hull_range({a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high});
  return plain.unknown() ? plain : rounded_range(plain.low, plain.high);
}

Range floor_divide_ranges(Type type, const Range& a, const Range& b) {
  if (b.low <= 0 && b.high >= 0) return everything_range();
  if (type == Type::real && !divides_exactly(a, b)) {
    const Range quotient = divide_ranges(a, b);
    return quotient.unknown() ? quotient : exact_range(std::floor(quotient.low), std::floor(quotient.high));
  }
  if (!is_finite(a) || !is_finite(b)) return everything_range();
  const auto quotient = [](double x, double y) {
    return static_cast<double>(floor_div_integer(static_cast<int64_t>(x), static_cast<int64_t>(y)));
  };
  const Range plain =
      hull_range({quotient(a.low, b.low), quotient(a.low, b.high), quotient(a.high, b.low), quotient(a.high, b.high)});
  return closed_range(type, plain, true);
}

Range modulo_ranges(Type type, const Range& a, const Range& b, const Tile& tile) {
  if (b.low <= 0 && b.high >= 0) return everything_range();
  if (type == Type::real && !divides_exactly(a, b)) {
    if (!is_finite(a) || !is_finite(b)) return everything_range();
    // a - b floor(a / b), where the rounded quotient may reach the next integer.
    const double error = kFunctionError * (std::max(-a.low, a.high) + std::max(-b.low, b.high));
    return rounded_range(std::min(0.0, b.low) - error, std::max(0.0, b.high) + error);
  }
  if (is_finite(a) && b.point()) {
    const auto divisor = static_cast<int64_t>(b.low);
    const auto first = floor_div_integer(static_cast<int64_t>(a.low), divisor);
    const auto last = floor_div_integer(static_cast<int64_t>(a.high), divisor);
    const Range period = exact_range(static_cast<double>(first * divisor), static_cast<double>(first * divisor), true);
    if (first == last) return add_ranges(type, a, period, -1, tile);
  }
  if (b.low > 0) {
    if (a.low >= 0 && a.high < b.low) return a;
    const double most = b.high - 1;
    return exact_range(0, a.low >= 0 ? std::min(most, a.high) : most, true);
  }
  if (a.high <= 0 && a.low > b.high) return a;
  const double least = b.low + 1;
  return exact_range(a.high <= 0 ? std::max(least, a.low) : least, 0, true);
}

Range power_ranges(Type type, const Range& a, const Range& b) {
  if (a.unknown() || b.unknown() || (type == Type::integer && b.low < 0)) return everything_range();
  const Range corners =
      hull_range({std::pow(a.low, b.low), std::pow(a.low, b.high), std::pow(a.high, b.low), std::pow(a.high, b.high)});
  const bool whole = b.point() && b.low >= 0 && b.low == std::floor(b.low);
  // Monotone in each operand for a positive base; an odd power for any base; an even one has its least value at 0.
  const bool monotone = a.low > 0 || (a.low >= 0 && b.low >= 0) || (whole && std::fmod(b.low, 2) == 1);
  if (!monotone && !(whole && a.low < 0)) return everything_range();
  Range result = corners;
  if (!monotone && !result.unknown()) {
    result = a.high >= 0 ? exact_range(b.low == 0 ? 1 : 0, result.high) : result;
  }
  if (result.unknown()) return result;
  return type == Type::integer ? closed_range(type, result, true) : function_range(result.low, result.high);
}

}  // namespace regard
