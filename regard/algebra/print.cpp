#include <charconv>
#include <cmath>

#include "regard/algebra/expr.h"
#include "regard/algebra/print.h"

namespace regard {
namespace {

/// Python's precedence, loosest first; `&` and `|` bind tighter than comparisons.
enum Binding { kComparison, kOr, kAnd, kSum, kProduct, kUnary, kPower, kAtom };

/// A text longer than this (in nodes, shared ones counted each time) names its shared and its long parts.
constexpr double kLongestTree = 400;
constexpr size_t kLongestPart = 600;  // characters

struct Text {
  std::string text;
  Binding binding = kAtom;
};

struct Infix {
  const char* sign;
  Binding binding;
};

const Infix* infix(Op op) {
  static const Infix kAdd{" + ", kSum}, kSub{" - ", kSum}, kMul{" * ", kProduct}, kDiv{" / ", kProduct},
      kFloorDiv{" // ", kProduct}, kMod{" % ", kProduct}, kPow{" ** ", kPower}, kLt{" < ", kComparison},
      kLe{" <= ", kComparison}, kGt{" > ", kComparison}, kGe{" >= ", kComparison}, kEq{" == ", kComparison},
      kNe{" != ", kComparison}, kBoth{" & ", kAnd}, kEither{" | ", kOr};
  switch (op) {
    case Op::add:
      return &kAdd;
    case Op::sub:
      return &kSub;
    case Op::mul:
      return &kMul;
    case Op::div:
      return &kDiv;
    case Op::floor_div:
      return &kFloorDiv;
    case Op::mod:
      return &kMod;
    case Op::pow:
      return &kPow;
    case Op::lt:
      return &kLt;
    case Op::le:
      return &kLe;
    case Op::gt:
      return &kGt;
    case Op::ge:
      return &kGe;
    case Op::eq:
      return &kEq;
    case Op::ne:
      return &kNe;
    case Op::logical_and:
      return &kBoth;
    case Op::logical_or:
      return &kEither;
    default:
      return nullptr;
  }
}

const char* leaf(Op op) {
  switch (op) {
    case Op::scale:
      return "scale";
    case Op::batch:
      return "b";
    case Op::head:
      return "h";
    case Op::query:
      return "i";
    case Op::key:
      return "j";
    case Op::row:
      return "row";
    case Op::column:
      return "column";
    case Op::batches:
      return "B";
    case Op::heads:
      return "H";
    case Op::queries:
      return "M";
    case Op::keys:
      return "N";
    default:
      return nullptr;
  }
}

Text print_constant(const Node& node) {
  if (node.type == Type::boolean) return {node.number != 0 ? "True" : "False"};
  std::string text =
      node.type == Type::integer ? std::to_string(static_cast<int64_t>(node.number)) : print_real(node.number);
  return {text, text[0] == '-' ? kUnary : kAtom};
}

Text print_dot(const Node& node) {
  std::string inside;
  const auto append = [&inside](const std::string& text) { inside += (inside.empty() ? "" : ", ") + text; };
  if (!node.name.empty()) append("\"" + node.name + "\"");
  if (node.begin != 0 || node.end != -1) append(std::to_string(node.begin) + ", " + std::to_string(node.end));
  if (node.only_head != -1) append("head=" + std::to_string(node.only_head));
  return {"dot(" + inside + ")"};
}

std::string wrap(const Text& text, bool parentheses) { return parentheses ? "(" + text.text + ")" : text.text; }

std::string list(const std::vector<Text>& args) {
  std::string text;
  for (const auto& arg : args) text += (text.empty() ? "" : ", ") + arg.text;
  return text;
}

Text print_infix(const Infix& sign, Op op, const std::vector<Text>& args) {
  // Comparisons do not associate, a power associates to the right, the others to the left.
  const bool strict_left = sign.binding == kComparison || op == Op::pow;
  const std::string left = wrap(args[0], args[0].binding < sign.binding + (strict_left ? 1 : 0));
  return {left + sign.sign + wrap(args[1], args[1].binding <= sign.binding), sign.binding};
}

Text print_node(const Node& node, const std::vector<Text>& args) {
  if (node.op == Op::constant) return print_constant(node);
  if (node.op == Op::dot) return print_dot(node);
  if (node.op == Op::capture) return {args.empty() ? node.name : node.name + "[" + list(args) + "]"};
  if (node.op == Op::cast) return {std::string(name_of(node.type)) + "(" + list(args) + ")"};
  if (const char* name = leaf(node.op)) return {name};
  if (const Infix* sign = infix(node.op)) return print_infix(*sign, node.op, args);
  if (node.op == Op::neg) return {"-" + wrap(args[0], args[0].binding < kUnary), kUnary};
  if (node.op == Op::logical_not) return {"~" + wrap(args[0], args[0].binding < kUnary), kUnary};
  return {std::string(name_of(node.op)) + "(" + list(args) + ")"};
}

/// Nodes of the tree that each entry would print as.
std::vector<double> tree_sizes(const Graph& graph) {
  std::vector<double> sizes;
  for (const auto& entry : graph.entries) {
    double size = 1;
    for (const int arg : entry.args) size += sizes[static_cast<size_t>(arg)];
    sizes.push_back(size);
  }
  return sizes;
}

}  // namespace

std::string print_real(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  std::string text(buffer, end);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string to_string(const Expr& expr) {
  if (!expr.defined()) return "default";
  const Graph graph = flatten({expr});
  const bool named = tree_sizes(graph).back() > kLongestTree;
  std::vector<int> users(graph.entries.size());
  for (const auto& entry : graph.entries) {
    for (const int arg : entry.args) ++users[static_cast<size_t>(arg)];
  }
  std::string lines;
  std::vector<Text> texts;
  int names = 0;
  for (size_t i = 0; i < graph.entries.size(); ++i) {
    const auto& entry = graph.entries[i];
    std::vector<Text> args;
    for (const int arg : entry.args) args.push_back(texts[static_cast<size_t>(arg)]);
    texts.push_back(print_node(entry.expr.node(), args));
    const bool part = users[i] > 1 || (users[i] == 1 && texts.back().text.size() > kLongestPart);
    if (named && part && !entry.args.empty()) {
      const std::string name = "t" + std::to_string(++names);
      lines += name + " = " + texts.back().text + "\n";
      texts.back() = {name};
    }
  }
  return lines + texts.back().text;
}

}  // namespace regard
