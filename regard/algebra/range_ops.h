#pragma once

#include "regard/algebra/interval.h"

namespace regard {

/// The interval form of one operator: sound for float32 and float64 evaluation, and for 32-bit integers that wrap.
Range range_of(Op op, Type type, const std::vector<Expr>& operands, const Range* args, const Tile& tile);

Range everything_range();
Range affine_range(double row_factor, double column_factor, double constant, const Tile& tile);
/// A range of results of correctly rounded float32 or float64 operations, given the exact one.
Range rounded_range(double low, double high);
/// The same for elementary functions, which a fast kernel computes to a few units in the last place.
Range function_range(double low, double high);

/// `value` rounded to float32.
double as_float(double value);

/// 32 units in the last place of float32.
constexpr double kFunctionError = 1.0 / (1 << 18);

}  // namespace regard
