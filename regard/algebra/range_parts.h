#pragma once

#include <initializer_list>

#include "regard/algebra/range_ops.h"

/// What the interval forms of operators are built of.
namespace regard {

/// Integers up to here are exact in float32.
constexpr double kLargestExact = 1 << 24;

/// [low, high], everything when an end is NaN.
Range exact_range(double low, double high, bool integral = false);

/// The hull of values, everything when one is NaN.
Range hull_range(std::initializer_list<double> values);

/// Closes an arithmetic result: integers that could wrap say nothing, reals are rounded unless surely exact.
Range closed_range(Type type, const Range& result, bool integral_operands);

bool is_finite(const Range& range);

/// a + sign b, by affine forms where both have one.
Range add_ranges(Type type, const Range& a, const Range& b, double sign, const Tile& tile);

Range divide_ranges(const Range& a, const Range& b);
Range floor_divide_ranges(Type type, const Range& a, const Range& b);
Range modulo_ranges(Type type, const Range& a, const Range& b, const Tile& tile);
Range power_ranges(Type type, const Range& a, const Range& b);

}  // namespace regard
