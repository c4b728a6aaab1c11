#include "regard/algebra/capture_class.h"

#include <set>

#include "regard/base/error.h"

namespace regard {
namespace {

/// What a value varies with within one (batch, head).
enum class Kind : uint8_t { none, query, key, offset, both, indirect };

/// A value a i + c j + (something fixed within a head) when `linear`; otherwise only `kind` is known.
struct Form {
  Kind kind = Kind::none;
  bool linear = true;
  double query = 0, key = 0;
};

Form linear(double query, double key) {
  Kind kind = Kind::both;
  if (query == 0 && key == 0)
    kind = Kind::none;
  else if (key == 0)
    kind = Kind::query;
  else if (query == 0)
    kind = Kind::key;
  else if (query == -key)
    kind = Kind::offset;
  return {kind, true, query, key};
}

Kind join(Kind a, Kind b) {
  if (a == Kind::indirect || b == Kind::indirect) return Kind::indirect;
  if (a == Kind::none || a == b) return b;
  return b == Kind::none ? a : Kind::both;
}

Form form_of(const Node& node, const std::vector<Form>& args) {
  switch (node.op) {
    case Op::query:
    case Op::row:
      return linear(1, 0);
    case Op::key:
    case Op::column:
      return linear(0, 1);
    case Op::dot:
      return {Kind::both, false};
    case Op::capture:
      return {Kind::indirect, false};
    case Op::add:
    case Op::sub: {
      if (!args[0].linear || !args[1].linear) break;
      const double sign = node.op == Op::add ? 1 : -1;
      return linear(args[0].query + sign * args[1].query, args[0].key + sign * args[1].key);
    }
    case Op::neg:
      if (args[0].linear) return linear(-args[0].query, -args[0].key);
      break;
    case Op::mul:
      for (const size_t side : {0, 1}) {
        const Expr& factor = node.args[1 - side];
        if (!args[side].linear || !factor.is_constant()) continue;
        return linear(args[side].query * factor.node().number, args[side].key * factor.node().number);
      }
      break;
    case Op::cast:
      if (node.type == Type::real) return args[0];
      break;
    default:
      break;
  }
  Kind kind = Kind::none;
  for (const auto& arg : args) kind = join(kind, arg.kind);
  return {kind, kind == Kind::none};
}

}  // namespace

CaptureClass capture_class(const Expr& read) {
  if (read.op() != Op::capture) fail("capture_class", "a capture", to_string(read));
  const Graph graph = flatten(read.node().args);
  std::vector<Form> forms;
  bool varies = false;
  for (const auto& entry : graph.entries) {
    std::vector<Form> args;
    for (const int arg : entry.args) args.push_back(forms[static_cast<size_t>(arg)]);
    forms.push_back(form_of(entry.expr.node(), args));
    varies = varies || entry.expr.op() == Op::batch || entry.expr.op() == Op::head;
  }
  std::set<Kind> kinds;
  for (const int root : graph.roots) kinds.insert(forms[static_cast<size_t>(root)].kind);
  kinds.erase(Kind::none);
  if (kinds.count(Kind::indirect)) return CaptureClass::indirect;
  if (kinds.empty()) return varies ? CaptureClass::head : CaptureClass::nothing;
  if (kinds == std::set{Kind::query}) return CaptureClass::query;
  if (kinds == std::set{Kind::key}) return CaptureClass::key;
  if (kinds == std::set{Kind::offset}) return CaptureClass::offset;
  if (kinds == std::set{Kind::query, Kind::offset}) return CaptureClass::query_and_offset;
  if (kinds == std::set{Kind::query, Kind::key}) return CaptureClass::query_and_key;
  return CaptureClass::both;
}

const char* name_of(CaptureClass value) {
  constexpr const char* names[] = {"nothing",          "head",          "query", "key",     "offset",
                                   "query_and_offset", "query_and_key", "both",  "indirect"};
  return names[static_cast<size_t>(value)];
}

}  // namespace regard
