#include "regard/algebra/scalar.h"

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"

namespace regard {
namespace {

double mod_real(double a, double b) {
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double sigmoid_real(double a) {
  // Both forms are exact in exact arithmetic; each avoids the overflow of the other.
  if (a < 0) {
    const double e = std::exp(a);
    return e / (1 + e);
  }
  return 1 / (1 + std::exp(-a));
}

/// The true power, truncated: 0 for |a| > 1 and a negative exponent, as torch does for tensors.
double pow_integer(double a, double b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (std::fmod(b, 2) == 0 ? 1 : -1) : 0;
  return std::pow(a, b);
}

/// A double as 64-bit integer, kept in range.
int64_t to_integer(double value) {
  constexpr double kLimit = 9.2e18;
  if (std::isnan(value)) return 0;
  return static_cast<int64_t>(std::max(-kLimit, std::min(kLimit, value)));
}

double min_scalar(double a, double b) { return std::isnan(a) || a < b ? a : b; }
double max_scalar(double a, double b) { return std::isnan(a) || a > b ? a : b; }

}  // namespace

int64_t floor_div_integer(int64_t a, int64_t b) {
  if (b == 0) return 0;
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

int64_t mod_integer(int64_t a, int64_t b) { return b == 0 ? 0 : a - b * floor_div_integer(a, b); }

double cast_scalar(double value, Type type) {
  if (type == Type::boolean) return value != 0;
  return type == Type::integer ? std::trunc(value) : value;
}

double apply_scalar(Op op, Type type, double a, double b) {
  const bool real = type == Type::real;
  const auto x = real ? 0 : to_integer(a), y = real ? 0 : to_integer(b);
  switch (op) {
    case Op::add:
      return a + b;
    case Op::sub:
      return a - b;
    case Op::mul:
      return a * b;
    case Op::div:
      return a / b;
    case Op::floor_div:
      return real ? std::floor(a / b) : static_cast<double>(floor_div_integer(x, y));
    case Op::mod:
      return real ? mod_real(a, b) : static_cast<double>(mod_integer(x, y));
    case Op::neg:
      return real ? -a : 0 - a;  // an integer has no -0
    case Op::min:
      return min_scalar(a, b);
    case Op::max:
      return max_scalar(a, b);
    case Op::abs:
      return std::abs(a);
    case Op::floor:
      return std::floor(a);
    case Op::exp:
      return std::exp(a);
    case Op::log:
      return std::log(a);
    case Op::tanh:
      return std::tanh(a);
    case Op::sigmoid:
      return sigmoid_real(a);
    case Op::sqrt:
      return std::sqrt(a);
    case Op::pow:
      return real ? std::pow(a, b) : pow_integer(a, b);
    case Op::cos:
      return std::cos(a);
    case Op::sin:
      return std::sin(a);
    case Op::lt:
      return a < b;
    case Op::le:
      return a <= b;
    case Op::gt:
      return a > b;
    case Op::ge:
      return a >= b;
    case Op::eq:
      return a == b;
    case Op::ne:
      return a != b;
    case Op::logical_and:
      return a != 0 && b != 0;
    case Op::logical_or:
      return a != 0 || b != 0;
    case Op::logical_not:
      return a == 0;
    default:
      fail("apply_scalar", "an operator of plain numbers", std::string("'") + name_of(op) + "'");
  }
}

}  // namespace regard
