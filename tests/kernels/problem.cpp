#include "tests/kernels/problem.h"

#include <cmath>
#include <functional>
#include <memory>

#include "regard/algebra/derivative.h"
#include "regard/algebra/evaluate.h"
#include "tests/kernels/naive_row.h"

namespace regard::kernels::testing {
namespace {

size_t offset_of(const Tensor& tensor, const std::vector<int64_t>& index) {
  size_t offset = 0;
  for (size_t k = 0; k < index.size(); ++k)
    offset = offset * static_cast<size_t>(tensor.sizes[k]) + static_cast<size_t>(index[k]);
  return offset;
}

int64_t elements(const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

class Solver {
 public:
  explicit Solver(const Problem& problem) : x(problem), spec(problem.spec.resolved()) {
    weight = spec.weight.defined() ? spec.weight : Expr(1.0);
    keep = spec.keep.defined() ? spec.keep : Expr(true);
    counted = spec.counted.defined() ? spec.counted : keep;
    score = spec.score.defined() ? spec.score : scale() * dot();
    values = std::make_unique<Evaluator>(std::vector<Expr>{keep, counted, weight, score});
    leaves.dot = [this](const Node& node, const Pair& pair) { return dot_value(node, pair); };
    leaves.capture = [this](const std::string& name, const std::vector<int64_t>& index) {
      return x.captures.at(name).values.at(index);
    };
    solution.o = filled({x.B, x.H, x.M, x.Dv});
    solution.lse = filled({x.B, x.H, x.M});
  }

  Row row(int64_t b, int64_t h, int64_t i) {
    Row r;
    for (int64_t j = 0; j < x.N; ++j) {
      const Pair pair = at(b, h, i, j);
      r.keep.push_back((*values)(pair, leaves, 0) != 0);
      r.counted.push_back((*values)(pair, leaves, 1) != 0);
      r.w.push_back(r.keep.back() ? (*values)(pair, leaves, 2) : 0);
      r.s.push_back(r.keep.back() || r.counted.back() ? (*values)(pair, leaves, 3) : 0);
    }
    std::vector<double> sinks;
    for (int64_t s = 0; !x.sinks.sizes.empty() && s < x.sinks.sizes[1]; ++s) sinks.push_back(x.sinks.at({h, s}));
    normalize(spec.normalizer, sinks, r);
    return r;
  }

  void forward() {
    each_row([&](int64_t b, int64_t h, int64_t i) {
      const Row r = row(b, h, i);
      solution.lse.at({b, h, i}) = r.lse;
      for (int64_t j = 0; j < x.N; ++j) {
        const auto n = static_cast<size_t>(j);
        if (!r.keep[n]) continue;
        for (int64_t d = 0; d < x.Dv; ++d) {
          solution.o.at({b, h, i, d}) += r.p[n] * r.w[n] * x.v.at({b, h * x.Hk / x.H, j, d});
        }
      }
    });
  }

  void backward() {
    allocate_gradients();
    std::vector<Expr> wanted = dots_of({score, weight});
    for (const Expr& read : real_captures_of({score, weight})) wanted.push_back(read);
    std::vector<Expr> slopes = gradient(score, wanted);
    for (const Expr& slope : gradient(weight, wanted)) slopes.push_back(slope);
    Evaluator slope_values(slopes);
    for (const Expr& leaf : wanted) indices.emplace_back(leaf.node().args);
    each_row([&](int64_t b, int64_t h, int64_t i) {
      const Row r = row(b, h, i);
      add_sinks(r, b, h, i);
      std::vector<double> dp(static_cast<size_t>(x.N)), g(dp.size());
      for (int64_t j = 0; j < x.N; ++j) {
        const auto n = static_cast<size_t>(j);
        if (!r.keep[n]) continue;
        for (int64_t d = 0; d < x.Dv; ++d) {
          dp[n] += x.grad_o.at({b, h, i, d}) * x.v.at({b, h * x.Hk / x.H, j, d});
          solution.v.at({b, h * x.Hk / x.H, j, d}) += r.p[n] * r.w[n] * x.grad_o.at({b, h, i, d});
        }
        g[n] = r.w[n] * dp[n];
      }
      const std::vector<double> through = slopes_through_sums(spec.normalizer, r, g, x.grad_lse.at({b, h, i}));
      for (int64_t j = 0; j < x.N; ++j) {
        const auto n = static_cast<size_t>(j);
        if (!r.keep[n] && !r.counted[n]) continue;
        const double ds = (r.keep[n] ? r.own[n] * g[n] : 0) + through[n], dw = r.p[n] * dp[n];
        const Pair pair = at(b, h, i, j);
        for (size_t l = 0; l < wanted.size(); ++l) {
          double slope = ds * slope_values(pair, leaves, l);
          if (r.keep[n]) slope += dw * slope_values(pair, leaves, wanted.size() + l);
          add_leaf(wanted[l], l, pair, slope);
        }
      }
    });
  }

  Solution solution;

 private:
  Pair at(int64_t b, int64_t h, int64_t i, int64_t j) const {
    Pair pair;
    pair.batch = b;
    pair.head = h;
    pair.row = i;
    pair.column = j;
    pair.batches = x.B;
    pair.heads = x.H;
    pair.queries = x.M;
    pair.keys = x.N;
    pair.query_offset = x.query_offset;
    pair.scale = x.scale;
    return pair;
  }

  struct Operands {
    const Tensor *q, *k;
    int64_t q_head, k_head, begin, end;
  };

  void add_sinks(const Row& r, int64_t b, int64_t h, int64_t i) {
    if (x.sinks.sizes.empty()) return;
    double delta = -x.grad_lse.at({b, h, i});
    for (int64_t d = 0; d < x.Dv && !spec.normalizer.detach; ++d) {
      delta += solution.o.at({b, h, i, d}) * x.grad_o.at({b, h, i, d});
    }
    for (int64_t s = 0; s < x.sinks.sizes[1]; ++s) {
      solution.sinks.at({h, s}) -= std::exp(x.sinks.at({h, s}) - r.lse) * delta;
    }
  }

  Operands operands_of(const Node& node, int64_t head) const {
    Operands o{&x.q, &x.k, head, head * x.Hk / x.H, node.begin, node.end};
    if (!node.name.empty()) {
      const NamedOperand& named = x.operands.at(node.name);
      const int64_t heads = named.q.sizes[1];
      o.q = &named.q;
      o.k = &named.k;
      o.q_head = o.k_head = node.only_head >= 0 ? node.only_head : head * heads / x.H;
    }
    if (o.end < 0) o.end = o.q->sizes[3];
    return o;
  }

  double dot_value(const Node& node, const Pair& p) const {
    const Operands o = operands_of(node, p.head);
    double sum = 0;
    for (int64_t d = o.begin; d < o.end; ++d) {
      sum += o.q->at({p.batch, o.q_head, p.row, d}) * o.k->at({p.batch, o.k_head, p.column, d});
    }
    return sum;
  }

  void add_leaf(const Expr& leaf, size_t number, const Pair& p, double slope) {
    const Node& node = leaf.node();
    if (node.op == Op::dot) {
      const Operands o = operands_of(node, p.head);
      Tensor& dq = node.name.empty() ? solution.q : solution.operands.at(node.name).q;
      Tensor& dk = node.name.empty() ? solution.k : solution.operands.at(node.name).k;
      for (int64_t d = o.begin; d < o.end; ++d) {
        dq.at({p.batch, o.q_head, p.row, d}) += slope * o.k->at({p.batch, o.k_head, p.column, d});
        dk.at({p.batch, o.k_head, p.column, d}) += slope * o.q->at({p.batch, o.q_head, p.row, d});
      }
      return;
    }
    std::vector<int64_t> index;
    for (size_t k = 0; k < node.args.size(); ++k) index.push_back(static_cast<int64_t>(indices[number](p, leaves, k)));
    solution.captures.at(node.name).at(index) += slope;
  }

  void allocate_gradients() {
    solution.q = filled(x.q.sizes);
    solution.k = filled(x.k.sizes);
    solution.v = filled(x.v.sizes);
    solution.sinks = filled(x.sinks.sizes);
    for (const auto& [name, captured] : x.captures) {
      if (captured.type == Type::real) solution.captures[name] = filled(captured.values.sizes);
    }
    for (const auto& [name, named] : x.operands) {
      solution.operands[name] = {filled(named.q.sizes), filled(named.k.sizes)};
    }
  }

  void each_row(const std::function<void(int64_t, int64_t, int64_t)>& body) const {
    for (int64_t b = 0; b < x.B; ++b) {
      for (int64_t h = 0; h < x.H; ++h) {
        for (int64_t i = 0; i < x.M; ++i) body(b, h, i);
      }
    }
  }

  const Problem& x;
  AttentionSpec spec;
  Expr score, keep, counted, weight;
  LeafValues leaves;
  std::unique_ptr<Evaluator> values;  // keep, counted, weight, score
  std::vector<Evaluator> indices;     // of each wanted leaf
};

}  // namespace

double& Tensor::at(const std::vector<int64_t>& index) { return data.at(offset_of(*this, index)); }
double Tensor::at(const std::vector<int64_t>& index) const { return data.at(offset_of(*this, index)); }

Tensor filled(std::vector<int64_t> sizes, double value) {
  Tensor tensor{std::move(sizes), {}};
  tensor.data.assign(static_cast<size_t>(elements(tensor.sizes)), value);
  return tensor;
}

/// Rounded to float32, so that the float kernel sees the very same numbers.
Tensor random_normal(std::vector<int64_t> sizes, std::mt19937& random) {
  Tensor tensor = filled(std::move(sizes));
  std::normal_distribution<double> normal;
  for (double& value : tensor.data) value = static_cast<float>(normal(random));
  return tensor;
}

Tensor random_integers(std::vector<int64_t> sizes, int low, int high, std::mt19937& random) {
  Tensor tensor = filled(std::move(sizes));
  std::uniform_int_distribution<int> uniform(low, high);
  for (double& value : tensor.data) value = uniform(random);
  return tensor;
}

Solution naive_forward(const Problem& problem) {
  Solver solver(problem);
  solver.forward();
  return std::move(solver.solution);
}

Solution naive(const Problem& problem) {
  Solver solver(problem);
  solver.forward();
  solver.backward();
  return std::move(solver.solution);
}

double objective(const Problem& problem) {
  const Solution s = naive_forward(problem);
  double sum = 0;
  for (size_t e = 0; e < s.o.data.size(); ++e) sum += s.o.data[e] * problem.grad_o.data[e];
  for (size_t e = 0; e < s.lse.data.size(); ++e) {
    if (std::isfinite(s.lse.data[e])) sum += s.lse.data[e] * problem.grad_lse.data[e];
  }
  return sum;
}

}  // namespace regard::kernels::testing
