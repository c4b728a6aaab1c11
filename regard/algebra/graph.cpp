#include <bit>
#include <unordered_map>

#include "regard/algebra/expr.h"
#include "regard/base/error.h"

namespace regard {
namespace {

/// Two nodes are one when their keys are: the fields, and the positions of the arguments.
struct Key {
  const Node* node;
  std::vector<int> args;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    size_t seed = static_cast<size_t>(key.node->op) * 4 + static_cast<size_t>(key.node->type);
    const auto mix = [&seed](size_t value) { seed ^= value + 0x9e3779b97f4a7c15 + (seed << 6) + (seed >> 2); };
    mix(std::hash<uint64_t>()(std::bit_cast<uint64_t>(key.node->number)));
    mix(std::hash<std::string>()(key.node->name));
    mix(static_cast<size_t>(key.node->begin * 31 + key.node->end * 7 + key.node->only_head));
    for (const int arg : key.args) mix(static_cast<size_t>(arg));
    return seed;
  }
};

struct KeyEqual {
  bool operator()(const Key& a, const Key& b) const {
    const Node &x = *a.node, &y = *b.node;
    // Numbers by their bits, so that 0 and -0 stay apart and NaN equals itself.
    return x.op == y.op && x.type == y.type && a.args == b.args &&
           std::bit_cast<uint64_t>(x.number) == std::bit_cast<uint64_t>(y.number) && x.name == y.name &&
           x.begin == y.begin && x.end == y.end && x.only_head == y.only_head;
  }
};

class Flattener {
 public:
  int add(const Expr& root) {
    // An explicit stack: expressions may be deeper than the call stack allows.
    std::vector<Expr> pending{root};
    while (!pending.empty()) {
      const Expr expr = pending.back();
      if (seen_.count(expr.pointer())) {
        pending.pop_back();
        continue;
      }
      const auto& args = expr.node().args;
      const size_t before = pending.size();
      for (auto arg = args.rbegin(); arg != args.rend(); ++arg) {
        if (!seen_.count(arg->pointer())) pending.push_back(*arg);
      }
      if (pending.size() > before) continue;
      pending.pop_back();
      seen_[expr.pointer()] = intern(expr);
    }
    return seen_.at(root.pointer());
  }

  Graph graph;

 private:
  int intern(const Expr& expr) {
    Key key{expr.pointer(), {}};
    for (const auto& arg : expr.node().args) key.args.push_back(seen_.at(arg.pointer()));
    const auto [found, fresh] = ids_.try_emplace(key, static_cast<int>(graph.entries.size()));
    if (fresh) graph.entries.push_back({expr, key.args});
    return found->second;
  }

  std::unordered_map<const Node*, int> seen_;
  std::unordered_map<Key, int, KeyHash, KeyEqual> ids_;
};

/// A copy of the entry's node over other arguments.
Expr rebuild(const Expr& expr, std::vector<Expr> args) {
  const Node& node = expr.node();
  if (node.op == Op::capture) return capture(node.name, node.type, std::move(args));
  if (node.op == Op::cast) return cast(args[0], node.type);
  return args.empty() ? expr : make(node.op, std::move(args));
}

}  // namespace

Graph flatten(const std::vector<Expr>& roots) {
  Flattener flattener;
  std::vector<int> positions;
  for (const auto& root : roots) positions.push_back(root.defined() ? flattener.add(root) : -1);
  flattener.graph.roots = std::move(positions);
  return std::move(flattener.graph);
}

bool same(const Expr& a, const Expr& b) {
  if (a.pointer() == b.pointer()) return true;
  const Graph graph = flatten({a, b});
  return graph.roots[0] == graph.roots[1];
}

Dependence dependence(const Expr& expr) {
  Dependence found;
  for (const auto& entry : flatten({expr}).entries) {
    switch (entry.expr.op()) {
      case Op::batch:
        found.batch = true;
        break;
      case Op::head:
        found.head = true;
        break;
      case Op::query:
      case Op::row:
        found.query = true;
        break;
      case Op::key:
      case Op::column:
        found.key = true;
        break;
      case Op::dot:
        found = {true, true, true, true, true};
        return found;
      default:
        break;
    }
  }
  return found;
}

Expr substitute(const Expr& expr, const std::vector<std::pair<Expr, Expr>>& replacements) {
  std::vector<Expr> roots;
  for (const auto& [from, to] : replacements) {
    if (from.type() != to.type()) {
      fail("substitute", std::string("a replacement of type ") + name_of(from.type()), name_of(to.type()));
    }
    roots.push_back(from);
  }
  roots.push_back(expr);
  const Graph graph = flatten(roots);
  std::vector<Expr> rebuilt(graph.entries.size());
  for (size_t i = 0; i < rebuilt.size(); ++i) {
    const auto& entry = graph.entries[i];
    for (size_t r = 0; r < replacements.size() && !rebuilt[i].defined(); ++r) {
      if (graph.roots[r] == static_cast<int>(i)) rebuilt[i] = replacements[r].second;
    }
    if (rebuilt[i].defined()) continue;
    std::vector<Expr> args;
    bool changed = false;
    for (size_t a = 0; a < entry.args.size(); ++a) {
      args.push_back(rebuilt[static_cast<size_t>(entry.args[a])]);
      changed = changed || args.back().pointer() != entry.expr.node().args[a].pointer();
    }
    rebuilt[i] = changed ? rebuild(entry.expr, std::move(args)) : entry.expr;
  }
  return rebuilt[static_cast<size_t>(graph.roots.back())];
}

}  // namespace regard
