#include "regard/ops/plan.h"

#include <mutex>
#include <unordered_map>

#include "regard/algebra/derivative.h"

namespace regard::ops {
namespace {

// A zero derivative is left out of the graph.
int root_of(const Graph& graph, size_t root, const Expr& expr) {
  return !expr.defined() || expr.is_constant(0) ? -1 : graph.roots[root];
}

std::unique_ptr<const Plan> make_plan(const AttentionSpec& spec) {
  std::vector<Expr> parts = {spec.score, spec.weight};
  for (const auto& pair : spec.pair_outputs) parts.push_back(pair.value);
  std::vector<Expr> leaves = dots_of(parts);
  for (const Expr& read : real_captures_of(parts)) leaves.push_back(read);

  std::vector<Expr> roots = {spec.score, spec.keep, spec.weight, spec.counted};
  for (const auto& pair : spec.pair_outputs) {
    roots.push_back(pair.value);
    roots.push_back(pair.bucket);
  }
  const size_t first_leaf = roots.size();
  roots.insert(roots.end(), leaves.begin(), leaves.end());
  const size_t first_derivative = roots.size();
  for (const Expr& part : parts)
    for (const Expr& derivative : gradient(part, leaves)) roots.push_back(derivative);

  auto plan = std::make_unique<Plan>();
  plan->graph = flatten(roots);
  const auto& at = plan->graph.roots;
  plan->score = at[0];
  plan->keep = at[1];
  plan->weight = at[2];
  plan->counted = at[3];
  for (size_t p = 0; p < spec.pair_outputs.size(); ++p)
    plan->pairs.push_back({at[4 + 2 * p], at[5 + 2 * p], spec.pair_outputs[p].buckets});
  for (size_t l = 0; l < leaves.size(); ++l) {
    const auto derivative = [&](size_t part) {
      const size_t root = first_derivative + part * leaves.size() + l;
      return root_of(plan->graph, root, roots[root]);
    };
    Plan::Leaf leaf{at[first_leaf + l], derivative(0), derivative(1), {}};
    for (size_t p = 0; p < spec.pair_outputs.size(); ++p) leaf.pairs.push_back(derivative(2 + p));
    plan->leaves.push_back(leaf);
  }
  plan->keep_all = spec.keep.op() == Op::constant && spec.keep.is_constant(1);
  plan->counted_as_keep = plan->counted == plan->keep;
  plan->weight_one = spec.weight.op() == Op::constant && spec.weight.is_constant(1);
  return plan;
}

}  // namespace

std::shared_ptr<const Plan> plan_of(const std::shared_ptr<const AttentionSpec>& resolved) {
  constexpr size_t kKept = 4096;  // a process that makes specs without end starts anew beyond
  struct Kept {
    std::shared_ptr<const AttentionSpec> spec;  // held, so that its address means this spec
    std::shared_ptr<const Plan> plan;
  };
  static std::mutex mutex;
  static std::unordered_map<const AttentionSpec*, Kept> plans;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = plans.find(resolved.get());
  if (found != plans.end()) return found->second.plan;
  if (plans.size() >= kKept) plans.clear();
  std::shared_ptr<const Plan> plan = make_plan(*resolved);
  plans.emplace(resolved.get(), Kept{resolved, plan});
  return plan;
}

}  // namespace regard::ops
