#include "regard/algebra/expr.h"

namespace regard {

Expr operator+(Expr a, Expr b) { return make(Op::add, {std::move(a), std::move(b)}); }
Expr operator-(Expr a, Expr b) { return make(Op::sub, {std::move(a), std::move(b)}); }
Expr operator*(Expr a, Expr b) { return make(Op::mul, {std::move(a), std::move(b)}); }
Expr operator/(Expr a, Expr b) { return make(Op::div, {std::move(a), std::move(b)}); }
Expr operator%(Expr a, Expr b) { return make(Op::mod, {std::move(a), std::move(b)}); }
Expr operator-(Expr a) { return make(Op::neg, {std::move(a)}); }
Expr floor_div(Expr a, Expr b) { return make(Op::floor_div, {std::move(a), std::move(b)}); }
Expr min(Expr a, Expr b) { return make(Op::min, {std::move(a), std::move(b)}); }
Expr max(Expr a, Expr b) { return make(Op::max, {std::move(a), std::move(b)}); }
Expr abs(Expr a) { return make(Op::abs, {std::move(a)}); }
Expr floor(Expr a) { return make(Op::floor, {std::move(a)}); }
Expr exp(Expr a) { return make(Op::exp, {std::move(a)}); }
Expr log(Expr a) { return make(Op::log, {std::move(a)}); }
Expr tanh(Expr a) { return make(Op::tanh, {std::move(a)}); }
Expr sigmoid(Expr a) { return make(Op::sigmoid, {std::move(a)}); }
Expr sqrt(Expr a) { return make(Op::sqrt, {std::move(a)}); }
Expr pow(Expr a, Expr b) { return make(Op::pow, {std::move(a), std::move(b)}); }
Expr cos(Expr a) { return make(Op::cos, {std::move(a)}); }
Expr sin(Expr a) { return make(Op::sin, {std::move(a)}); }

Expr operator<(Expr a, Expr b) { return make(Op::lt, {std::move(a), std::move(b)}); }
Expr operator<=(Expr a, Expr b) { return make(Op::le, {std::move(a), std::move(b)}); }
Expr operator>(Expr a, Expr b) { return make(Op::gt, {std::move(a), std::move(b)}); }
Expr operator>=(Expr a, Expr b) { return make(Op::ge, {std::move(a), std::move(b)}); }
Expr operator==(Expr a, Expr b) { return make(Op::eq, {std::move(a), std::move(b)}); }
Expr operator!=(Expr a, Expr b) { return make(Op::ne, {std::move(a), std::move(b)}); }
Expr operator&(Expr a, Expr b) { return make(Op::logical_and, {std::move(a), std::move(b)}); }
Expr operator|(Expr a, Expr b) { return make(Op::logical_or, {std::move(a), std::move(b)}); }
Expr operator~(Expr a) { return make(Op::logical_not, {std::move(a)}); }
Expr where(Expr condition, Expr a, Expr b) {
  return make(Op::where, {std::move(condition), std::move(a), std::move(b)});
}

}  // namespace regard
