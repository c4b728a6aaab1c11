#include "regard/algebra/simplify.h"

#include <cmath>
#include <limits>

#include "regard/algebra/scalar.h"

namespace regard {
namespace {

bool fits(double value, Type type) {
  // Integers are 32 bits wide in kernels: an overflowing fold is left to the run time, where it is as the rest.
  return type != Type::integer ||
         (value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max());
}

Expr fold(Op op, Type type, const std::vector<Expr>& args) {
  for (const auto& arg : args) {
    if (!arg.is_constant()) return {};
  }
  const double b = args.size() > 1 ? args[1].node().number : 0;
  const double value = apply_scalar(op, args[0].type(), args[0].node().number, b);
  return fits(value, type) ? constant(value, type) : Expr();
}

Expr simplify_mul(Type type, const Expr& a, const Expr& b) {
  if (a.is_constant(1)) return b;
  if (b.is_constant(1)) return a;
  // 0 * x is 0 of integers only: a real x may be NaN or infinite.
  if (type == Type::integer && a.is_constant(0)) return a;
  if (type == Type::integer && b.is_constant(0)) return b;
  return {};
}

Expr simplify_pow(const Expr& a, const Expr& b) {
  if (b.is_constant(1)) return a;
  if (b.is_constant(0)) return constant(1, a.type());  // also of NaN, as in C and torch
  if (b.is_constant(2)) return a * a;
  return {};
}

Expr simplify_logic(Op op, const Expr& a, const Expr& b) {
  const double absorbing = op == Op::logical_and ? 0 : 1;
  if (a.is_constant()) return a.is_constant(absorbing) ? a : b;
  if (b.is_constant()) return b.is_constant(absorbing) ? b : a;
  return {};
}

}  // namespace

Expr simplify(Op op, Type type, const std::vector<Expr>& args) {
  if (op == Op::where) {
    if (!args[0].is_constant()) return {};
    return args[0].is_constant(1) ? args[1] : args[2];
  }
  if (Expr folded = fold(op, type, args); folded.defined()) return folded;
  const Expr& a = args[0];
  switch (op) {
    case Op::add:
      if (a.is_constant(0)) return args[1];
      return args[1].is_constant(0) ? a : Expr();
    case Op::sub:
      return args[1].is_constant(0) ? a : Expr();
    case Op::mul:
      return simplify_mul(type, a, args[1]);
    case Op::div:
      return args[1].is_constant(1) ? a : Expr();
    case Op::floor_div:
      return type == Type::integer && args[1].is_constant(1) ? a : Expr();
    case Op::mod:
      return type == Type::integer && args[1].is_constant(1) ? Expr(0) : Expr();
    case Op::pow:
      return simplify_pow(a, args[1]);
    case Op::neg:
    case Op::logical_not:
      return a.op() == op ? a.node().args[0] : Expr();
    case Op::logical_and:
    case Op::logical_or:
      return simplify_logic(op, a, args[1]);
    default:
      return {};
  }
}

}  // namespace regard
