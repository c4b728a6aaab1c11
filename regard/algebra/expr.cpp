#include "regard/algebra/expr.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "regard/algebra/scalar.h"
#include "regard/algebra/simplify.h"
#include "regard/base/error.h"

namespace regard {
namespace {

Expr node(Op op, Type type, std::vector<Expr> args = {}) {
  auto made = std::make_shared<Node>();
  made->op = op;
  made->type = type;
  made->args = std::move(args);
  return Expr(std::move(made));
}

std::string types_of(const std::vector<Expr>& args) {
  std::string text;
  for (const auto& arg : args) text += (text.empty() ? "" : " and ") + std::string(name_of(arg.type()));
  return text;
}

size_t arity(Op op) {
  if (op <= Op::capture) return 0;
  switch (op) {
    case Op::neg:
    case Op::abs:
    case Op::floor:
    case Op::exp:
    case Op::log:
    case Op::tanh:
    case Op::sigmoid:
    case Op::sqrt:
    case Op::cos:
    case Op::sin:
    case Op::logical_not:
    case Op::cast:
      return 1;
    case Op::where:
      return 3;
    default:
      return 2;
  }
}

bool is_logic(Op op) { return op == Op::logical_and || op == Op::logical_or || op == Op::logical_not; }
bool is_comparison(Op op) { return op >= Op::lt && op <= Op::ne; }
bool gives_real(Op op) {
  return op == Op::div || op == Op::exp || op == Op::log || op == Op::tanh || op == Op::sigmoid || op == Op::sqrt ||
         op == Op::cos || op == Op::sin;
}

Type promoted(const std::vector<Expr>& args) {
  Type type = Type::boolean;
  for (const auto& arg : args) type = std::max(type, arg.type());
  return type;
}

/// Of booleans, `+` and max are or, `*` and min are and.
Expr boolean_arithmetic(Op op, const std::vector<Expr>& args) {
  if (op == Op::add || op == Op::max) return make(Op::logical_or, args);
  if (op == Op::mul || op == Op::min) return make(Op::logical_and, args);
  fail(name_of(op), "int or float arguments (cast the booleans)", types_of(args));
}

void refuse_constant_divisor(Op op, const std::vector<Expr>& args, Type type) {
  if (type != Type::integer) return;
  if ((op == Op::floor_div || op == Op::mod) && args[1].is_constant(0)) {
    fail(name_of(op), "an integer divisor other than 0", "0");
  }
  if (op == Op::pow && args[1].is_constant() && args[1].node().number < 0) {
    fail("pow", "an exponent of at least 0 for an integer base (cast the base to float)", to_string(args[1]));
  }
}

void cast_all(std::vector<Expr>& args, Type type, size_t first = 0) {
  for (size_t i = first; i < args.size(); ++i) args[i] = cast(args[i], type);
}

Expr make_where(std::vector<Expr> args) {
  if (args[0].type() != Type::boolean) fail("where", "a bool condition", name_of(args[0].type()));
  const Type type = std::max(args[1].type(), args[2].type());
  cast_all(args, type, 1);
  Expr simple = simplify(Op::where, type, args);
  return simple.defined() ? simple : node(Op::where, type, std::move(args));
}

/// Operators of numbers and booleans: promotes, types, simplifies.
Expr make_operator(Op op, std::vector<Expr> args) {
  Type operands = promoted(args), result = operands;
  if (is_logic(op)) {
    if (std::any_of(args.begin(), args.end(), [](const Expr& arg) { return arg.type() != Type::boolean; })) {
      fail(name_of(op), args.size() == 1 ? "a bool argument" : "bool arguments", types_of(args));
    }
  } else if (is_comparison(op)) {
    operands = std::max(operands, Type::integer);
    result = Type::boolean;
  } else if (gives_real(op)) {
    operands = result = Type::real;
  } else if (operands == Type::boolean) {
    return boolean_arithmetic(op, args);
  }
  if (op == Op::floor && operands == Type::integer) return args[0];
  cast_all(args, operands);
  refuse_constant_divisor(op, args, operands);
  Expr simple = simplify(op, result, args);
  return simple.defined() ? simple : node(op, result, std::move(args));
}

}  // namespace

Node::~Node() {
  std::vector<Expr> pending = std::move(args);
  while (!pending.empty()) {
    const Expr last = std::move(pending.back());
    pending.pop_back();
    if (!last.defined() || !last.unique()) continue;
    // The only owner may take the arguments over; every Node is created non-const (see `node`).
    std::atomic_thread_fence(std::memory_order_acquire);
    auto& inner = const_cast<Node*>(last.pointer())->args;
    std::move(inner.begin(), inner.end(), std::back_inserter(pending));
    inner.clear();
  }
}

std::shared_ptr<const Node> Expr::literal(double value, Type type) {
  if (type == Type::integer) {
    const bool fits = value == std::trunc(value) && value >= std::numeric_limits<int32_t>::min() &&
                      value <= std::numeric_limits<int32_t>::max();
    if (!fits) fail("constant", "an integer that fits in 32 bits", std::to_string(value));
    value += 0.0;  // an integer has no -0
  } else if (type == Type::boolean) {
    value = value != 0;
  } else if (std::isnan(value)) {
    value = std::numeric_limits<double>::quiet_NaN();  // one NaN, so that equal constants have equal bits
  }
  auto made = std::make_shared<Node>();
  made->op = Op::constant;
  made->type = type;
  made->number = value;
  return made;
}

const Node& Expr::node() const {
  if (!node_) fail("Expr", "an expression", "an empty one");
  return *node_;
}

bool Expr::is_constant() const { return node().op == Op::constant; }
bool Expr::is_constant(double value) const { return is_constant() && node_->number == value; }

Expr constant(double value, Type type) {
  if (type == Type::real) return Expr(value);
  if (type == Type::boolean) return Expr(value != 0);
  if (value == std::trunc(value) && std::abs(value) < 9e15) return Expr(static_cast<int64_t>(value));
  fail("constant", "an integer that fits in 32 bits", std::to_string(value));
}

Expr dot(const std::string& operand, int64_t begin, int64_t end, int64_t only_head) {
  if (begin < 0) fail("dot", "a first feature of at least 0", std::to_string(begin));
  if (end != -1 && end <= begin) {
    fail("dot", "an end after the first feature " + std::to_string(begin) + ", or -1", std::to_string(end));
  }
  if (operand.empty() && only_head != -1) fail("dot", "the name of an operand with the head", "''");
  if (only_head < -1) fail("dot", "a head of at least 0, or -1", std::to_string(only_head));
  auto made = std::make_shared<Node>();
  made->op = Op::dot;
  made->name = operand;
  made->begin = begin;
  made->end = end;
  made->only_head = only_head;
  return Expr(std::move(made));
}

Expr dot(int64_t begin, int64_t end) { return dot("", begin, end, -1); }
Expr dot(const std::string& operand, int64_t only_head) { return dot(operand, 0, -1, only_head); }
Expr scale() { return node(Op::scale, Type::real); }
Expr dot() { return dot(0, -1); }
Expr batch() { return node(Op::batch, Type::integer); }
Expr head() { return node(Op::head, Type::integer); }
Expr query() { return node(Op::query, Type::integer); }
Expr key() { return node(Op::key, Type::integer); }
Expr row() { return node(Op::row, Type::integer); }
Expr column() { return node(Op::column, Type::integer); }
Expr batches() { return node(Op::batches, Type::integer); }
Expr heads() { return node(Op::heads, Type::integer); }
Expr queries() { return node(Op::queries, Type::integer); }
Expr keys() { return node(Op::keys, Type::integer); }

Expr capture(const std::string& name, Type type, std::vector<Expr> indices) {
  if (name.empty()) fail("capture", "a name", "''");
  for (size_t i = 0; i < indices.size(); ++i) {
    if (!indices[i].defined() || indices[i].type() == Type::integer) continue;
    fail("capture", "int indices of '" + name + "'",
         std::string(name_of(indices[i].type())) + " at index " + std::to_string(i));
  }
  for (const auto& index : indices) index.node();  // an empty one is refused
  auto made = std::make_shared<Node>();
  made->op = Op::capture;
  made->type = type;
  made->name = name;
  made->args = std::move(indices);
  return Expr(std::move(made));
}

Expr cast(Expr a, Type type) {
  if (a.type() == type) return a;
  if (type == Type::boolean) return a != constant(0, a.type());
  if (a.is_constant()) {
    const double value = cast_scalar(a.node().number, type);
    if (type == Type::real || (std::isfinite(value) && std::abs(value) < std::numeric_limits<int32_t>::max())) {
      return constant(value, type);
    }
    fail("cast", "a constant that fits in a 32-bit int", to_string(a));
  }
  return node(Op::cast, type, {std::move(a)});
}

Expr make(Op op, std::vector<Expr> args) {
  if (op == Op::constant || op == Op::capture || op == Op::cast) {
    fail("make", "an operator or a leaf without a literal", std::string("'") + name_of(op) + "'");
  }
  if (args.size() != arity(op)) {
    fail(name_of(op), std::to_string(arity(op)) + " arguments", std::to_string(args.size()));
  }
  for (const auto& arg : args) arg.node();  // an empty one is refused
  if (op == Op::scale || op == Op::dot) return op == Op::dot ? dot() : scale();
  if (args.empty()) return node(op, Type::integer);
  return op == Op::where ? make_where(std::move(args)) : make_operator(op, std::move(args));
}

}  // namespace regard
