#include "regard/algebra/derivative.h"

#include "regard/base/error.h"

namespace regard {
namespace {

/// What an entry collects: the derivative of f, and the condition under which f uses the entry at all. Where it is
/// not used the derivative is exactly 0, and products with local derivatives, which may be infinite or NaN there,
/// are replaced by 0: `where` passes nothing to the branch not chosen.
struct Adjoint {
  Expr value;  ///< empty: no contribution
  Expr active = false;
};

class Reverse {
 public:
  explicit Reverse(const Graph& graph) : graph_(graph), adjoints_(graph.entries.size()), needed_(adjoints_.size()) {}

  void need(int entry) { needed_[static_cast<size_t>(entry)] = true; }

  void run(int root) {
    for (size_t i = 0; i < needed_.size(); ++i) {
      for (const int arg : graph_.entries[i].args) {
        // A derivative passes through real values only.
        if (needed_[static_cast<size_t>(arg)] && graph_.entries[i].expr.type() == Type::real &&
            graph_.entries[i].expr.op() != Op::capture) {
          needed_[i] = true;
        }
      }
    }
    adjoints_[static_cast<size_t>(root)] = {1.0, true};
    for (int i = root; i >= 0; --i) {
      if (needed_[static_cast<size_t>(i)] && adjoints_[static_cast<size_t>(i)].value.defined()) visit(i);
    }
  }

  const Expr& derivative(int entry) const { return adjoints_[static_cast<size_t>(entry)].value; }

 private:
  bool wants(int entry, size_t arg) const {
    return needed_[static_cast<size_t>(graph_.entries[static_cast<size_t>(entry)].args[arg])];
  }

  void add(int entry, size_t arg, const Expr& value, const Expr& active) {
    Adjoint& adjoint = adjoints_[static_cast<size_t>(graph_.entries[static_cast<size_t>(entry)].args[arg])];
    adjoint.value = adjoint.value.defined() ? adjoint.value + value : value;
    adjoint.active = adjoint.active | active;
  }

  /// `value` may be anything where the entry is not active.
  void add_guarded(int entry, size_t arg, const Expr& value) {
    const Expr& active = adjoints_[static_cast<size_t>(entry)].active;
    add(entry, arg, where(active, value, 0.0), active);
  }

  void visit(int i);
  void visit_unary(int i, const Expr& g, const Expr& x, const Expr& y);
  void visit_pow(int i, const Expr& g, const Expr& a, const Expr& b, const Expr& y);

  const Graph& graph_;
  std::vector<Adjoint> adjoints_;
  std::vector<bool> needed_;
};

void Reverse::visit(int i) {
  const Expr y = graph_.entries[static_cast<size_t>(i)].expr;
  const Adjoint adjoint = adjoints_[static_cast<size_t>(i)];
  const Expr& g = adjoint.value;
  const auto& args = y.node().args;
  if (args.empty() || y.op() == Op::capture) return;
  if (args.size() == 1) return visit_unary(i, g, args[0], y);
  const Expr &a = args[0], &b = args[1];
  const auto pass = [&](size_t arg, const Expr& value) {
    if (wants(i, arg)) add(i, arg, value, adjoint.active);
  };
  const auto guarded = [&](size_t arg, auto value) {
    if (wants(i, arg)) add_guarded(i, arg, value());
  };
  switch (y.op()) {
    case Op::add:
      pass(0, g), pass(1, g);
      return;
    case Op::sub:
      pass(0, g), pass(1, -g);
      return;
    case Op::mul:
      guarded(0, [&] { return g * b; });
      guarded(1, [&] { return g * a; });
      return;
    case Op::div:
      guarded(0, [&] { return g / b; });
      guarded(1, [&] { return -(g * (y / b)); });
      return;
    case Op::mod:  // a - b floor(a / b)
      pass(0, g);
      guarded(1, [&] { return -(g * floor_div(a, b)); });
      return;
    case Op::min:
      pass(0, where(a > b, 0.0, where(a == b, 0.5 * g, g)));
      pass(1, where(a < b, 0.0, where(a == b, 0.5 * g, g)));
      return;
    case Op::max:
      pass(0, where(a < b, 0.0, where(a == b, 0.5 * g, g)));
      pass(1, where(a > b, 0.0, where(a == b, 0.5 * g, g)));
      return;
    case Op::pow:
      return visit_pow(i, g, a, b, y);
    case Op::where:
      if (wants(i, 1)) add(i, 1, where(a, g, 0.0), adjoint.active & a);
      if (wants(i, 2)) add(i, 2, where(a, 0.0, g), adjoint.active & ~a);
      return;
    default:
      return;  // floor_div is flat
  }
}

void Reverse::visit_unary(int i, const Expr& g, const Expr& x, const Expr& y) {
  if (!wants(i, 0)) return;
  const Expr& active = adjoints_[static_cast<size_t>(i)].active;
  switch (y.op()) {
    case Op::neg:
      return add(i, 0, -g, active);
    case Op::abs:
      return add(i, 0, where(x > 0.0, g, where(x < 0.0, -g, 0.0)), active);
    case Op::exp:
      return add_guarded(i, 0, g * y);
    case Op::log:
      return add_guarded(i, 0, g / x);
    case Op::tanh:
      return add_guarded(i, 0, g * (1.0 - y * y));
    case Op::sigmoid:
      return add_guarded(i, 0, g * ((1.0 - y) * y));
    case Op::sqrt:
      return add_guarded(i, 0, g / (2.0 * y));
    case Op::cos:
      return add_guarded(i, 0, -(g * sin(x)));
    case Op::sin:
      return add_guarded(i, 0, g * cos(x));
    default:
      return;  // floor is flat, a cast to real comes from an integer
  }
}

/// d a^b = b a^(b-1) da, 0 for b = 0; a^b log(a) db, 0 for a = 0 and b >= 0.
void Reverse::visit_pow(int i, const Expr& g, const Expr& a, const Expr& b, const Expr& y) {
  if (wants(i, 0)) add_guarded(i, 0, where(b == 0.0, 0.0, g * (b * pow(a, b - 1.0))));
  if (wants(i, 1)) add_guarded(i, 1, where((a == 0.0) & (b >= 0.0), 0.0, g * (y * log(a))));
}

std::vector<Expr> collect(const std::vector<Expr>& expressions, Op op) {
  std::vector<Expr> found;
  for (const auto& entry : flatten(expressions).entries) {
    if (entry.expr.op() == op && entry.expr.type() == Type::real) found.push_back(entry.expr);
  }
  return found;
}

}  // namespace

std::vector<Expr> gradient(const Expr& f, const std::vector<Expr>& leaves) {
  if (f.type() != Type::real) fail("gradient", "an expression of type float", name_of(f.type()));
  for (const auto& leaf : leaves) {
    if (leaf.type() == Type::real && (leaf.op() == Op::dot || leaf.op() == Op::capture)) continue;
    fail("gradient", "leaves that are dots or float captures", to_string(leaf));
  }
  std::vector<Expr> roots{f};
  roots.insert(roots.end(), leaves.begin(), leaves.end());
  const Graph graph = flatten(roots);
  Reverse reverse(graph);
  for (size_t i = 1; i < roots.size(); ++i) reverse.need(graph.roots[i]);
  reverse.run(graph.roots[0]);
  std::vector<Expr> result;
  for (size_t i = 1; i < roots.size(); ++i) {
    const Expr& value = reverse.derivative(graph.roots[i]);
    result.push_back(value.defined() ? value : Expr(0.0));
  }
  return result;
}

std::vector<Expr> dots_of(const std::vector<Expr>& expressions) { return collect(expressions, Op::dot); }
std::vector<Expr> real_captures_of(const std::vector<Expr>& expressions) { return collect(expressions, Op::capture); }

}  // namespace regard
