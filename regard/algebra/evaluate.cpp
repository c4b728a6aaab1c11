#include "regard/algebra/evaluate.h"

#include "regard/algebra/scalar.h"
#include "regard/base/error.h"

namespace regard {

Evaluator::Evaluator(const std::vector<Expr>& roots)
    : graph_(flatten(roots)), values_(graph_.entries.size()), known_(graph_.entries.size()) {}

double Evaluator::operator()(const Pair& pair, const LeafValues& leaves, size_t index) {
  known_.assign(known_.size(), false);
  return value(graph_.roots.at(index), pair, leaves);
}

double Evaluator::value(int position, const Pair& pair, const LeafValues& leaves) {
  if (position < 0) fail("evaluate", "an expression", "an empty one");
  const auto entry = static_cast<size_t>(position);
  if (!known_[entry]) {
    values_[entry] = compute(graph_.entries[entry], pair, leaves);
    known_[entry] = true;
  }
  return values_[entry];
}

double Evaluator::compute(const Graph::Entry& entry, const Pair& pair, const LeafValues& leaves) {
  const Node& node = entry.expr.node();
  const auto arg = [&](size_t i) { return value(entry.args[i], pair, leaves); };
  switch (node.op) {
    case Op::constant:
      return node.number;
    case Op::scale:
      return pair.scale;
    case Op::batch:
      return static_cast<double>(pair.batch);
    case Op::head:
      return static_cast<double>(pair.head);
    case Op::query:
      return static_cast<double>(pair.row + pair.query_offset);
    case Op::row:
      return static_cast<double>(pair.row);
    case Op::key:
    case Op::column:
      return static_cast<double>(pair.column);
    case Op::batches:
      return static_cast<double>(pair.batches);
    case Op::heads:
      return static_cast<double>(pair.heads);
    case Op::queries:
      return static_cast<double>(pair.queries);
    case Op::keys:
      return static_cast<double>(pair.keys);
    case Op::dot:
      if (!leaves.dot) fail("evaluate", "values for dots", to_string(entry.expr));
      return leaves.dot(node, pair);
    case Op::capture: {
      if (!leaves.capture) fail("evaluate", "values for captures", "'" + node.name + "'");
      std::vector<int64_t> indices;
      for (size_t i = 0; i < entry.args.size(); ++i) indices.push_back(static_cast<int64_t>(arg(i)));
      return leaves.capture(node.name, indices);
    }
    case Op::where:
      return arg(0) != 0 ? arg(1) : arg(2);
    case Op::logical_and:
      return arg(0) != 0 && arg(1) != 0;
    case Op::logical_or:
      return arg(0) != 0 || arg(1) != 0;
    case Op::cast:
      return cast_scalar(arg(0), node.type);
    default: {
      const double a = arg(0), b = entry.args.size() > 1 ? arg(1) : 0;
      return apply_scalar(node.op, node.args[0].type(), a, b);
    }
  }
}

double evaluate(const Expr& expr, const Pair& pair, const LeafValues& leaves) {
  return Evaluator({expr})(pair, leaves);
}

}  // namespace regard
