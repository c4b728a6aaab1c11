#pragma once

#include "regard/algebra/expr.h"

namespace regard {

/// op(a, b) of plain numbers; `type` is the type of the operands, integers are exact below 2^53.
/// Not for leaves, casts and `where`.
double apply_scalar(Op op, Type type, double a, double b = 0);

/// `value` as `type`: truncated for an integer, `!= 0` for a boolean.
double cast_scalar(double value, Type type);

/// floor(a / b) and a - b floor(a / b) of integers, 0 for b = 0.
int64_t floor_div_integer(int64_t a, int64_t b);
int64_t mod_integer(int64_t a, int64_t b);

}  // namespace regard
