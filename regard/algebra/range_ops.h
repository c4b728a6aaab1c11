#pragma once

#include "regard/algebra/interval.h"

namespace regard {

/// The interval form of one operator: sound for float32 and float64 evaluation, and for 32-bit integers that wrap.
Range range_of(Op op, Type type, const std::vector<Expr>& operands, const Range* args, const Tile& tile);

Range everything_range();
Range affine_range(double row_factor, double column_factor, double constant, const Tile& tile);
/// A range of reals that may have been rounded to float32.
Range rounded_range(double low, double high, double relative);

/// float32 arithmetic is off by 2^-24 of the result, elementary functions in a fast kernel by some units more.
constexpr double kArithmeticError = 1.0 / (1 << 23);
constexpr double kFunctionError = 1.0 / (1 << 18);

}  // namespace regard
