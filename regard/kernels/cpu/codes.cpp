#include "regard/kernels/cpu/codes.h"

#include <string>

#include "regard/base/error.h"

namespace regard::kernels {

Code code_of(Op op, Type result, Type argument) {
  const bool real = argument == Type::real;
  switch (op) {
    case Op::add:
      return real ? Code::add : Code::add_i;
    case Op::sub:
      return real ? Code::sub : Code::sub_i;
    case Op::mul:
      return real ? Code::mul : Code::mul_i;
    case Op::div:
      return Code::div;
    case Op::floor_div:
      return real ? Code::floor_div : Code::floor_div_i;
    case Op::mod:
      return real ? Code::mod : Code::mod_i;
    case Op::neg:
      return real ? Code::neg : Code::neg_i;
    case Op::min:
      return real ? Code::min : Code::min_i;
    case Op::max:
      return real ? Code::max : Code::max_i;
    case Op::abs:
      return real ? Code::abs : Code::abs_i;
    case Op::floor:
      return real ? Code::floor : Code::copy_i;
    case Op::exp:
      return Code::exp;
    case Op::log:
      return Code::log;
    case Op::tanh:
      return Code::tanh;
    case Op::sigmoid:
      return Code::sigmoid;
    case Op::sqrt:
      return Code::sqrt;
    case Op::pow:
      return real ? Code::pow : Code::pow_i;
    case Op::cos:
      return Code::cos;
    case Op::sin:
      return Code::sin;
    case Op::lt:
      return real ? Code::lt : Code::lt_i;
    case Op::le:
      return real ? Code::le : Code::le_i;
    case Op::gt:
      return real ? Code::gt : Code::gt_i;
    case Op::ge:
      return real ? Code::ge : Code::ge_i;
    case Op::eq:
      return real ? Code::eq : Code::eq_i;
    case Op::ne:
      return real ? Code::ne : Code::ne_i;
    case Op::logical_and:
      return Code::and_i;
    case Op::logical_or:
      return Code::or_i;
    case Op::logical_not:
      return Code::not_i;
    case Op::where:
      return result == Type::real ? Code::where : Code::where_i;
    case Op::cast:
      if (result == Type::real) return real ? Code::copy : Code::real_from_integer;
      return real ? Code::integer_from_real : Code::copy_i;
    default:
      fail("attention", "an operator", std::string("'") + name_of(op) + "'");
  }
}

}  // namespace regard::kernels
