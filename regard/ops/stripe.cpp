#include "regard/ops/stripe.h"

#include <algorithm>

#include "regard/ops/evaluate.h"
#include "regard/ops/node.h"

namespace regard::ops {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

/// Recomputes one stripe and differentiates it. With create_graph the recomputation stays connected to the saved inputs,
/// so gradients of any order follow.
struct StripeBackward final : Node {
  StripeFunction function;
  Rows rows;
  Saved saved;
  std::string name() const override { return "StripeBackward"; }

  variable_list apply(variable_list&& grads) override {
    const bool again = at::GradMode::is_enabled();
    std::vector<at::Tensor> inputs = saved.unpack(nullptr), wanted, outputs, cotangents;
    std::vector<size_t> places;
    const at::AutoGradMode enable(true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!task_should_compute_output(i) || !inputs[i].defined()) continue;
      inputs[i] = again ? inputs[i].view_as(inputs[i]) : inputs[i].detach().requires_grad_();
      wanted.push_back(inputs[i]);
      places.push_back(i);
    }
    const auto results = function(rows, inputs);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!grads[i].defined() || !results[i].requires_grad()) continue;
      outputs.push_back(results[i]);
      cotangents.push_back(grads[i]);
    }
    variable_list out(inputs.size());
    if (outputs.empty() || wanted.empty()) return out;
    const auto g = torch::autograd::grad(outputs, wanted, cotangents, /*retain_graph=*/again, /*create_graph=*/again,
                                         /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) out[places[i]] = g[i];
    return out;
  }
  void release_variables() override { saved.release(); }
};

bool can_recompute(const std::vector<at::Tensor>& inputs) {
  return std::all_of(inputs.begin(), inputs.end(), [](const at::Tensor& t) { return !t.defined() || concrete(t); });
}

std::vector<at::Tensor> run_stripe(const Rows& rows, const std::vector<at::Tensor>& inputs, const StripeFunction& f) {
  // Transforms and tracing differentiate what runs: they cannot see through a nested engine call.
  if (!any_requires_grad(inputs) || any_forward_grad(inputs) || !can_recompute(inputs)) return f(rows, inputs);
  auto node = make_node<StripeBackward>();
  node->set_next_edges(edges_of(inputs));
  node->function = f;
  node->rows = rows;
  node->saved.save(inputs);
  std::vector<at::Tensor> outputs;
  {
    const at::NoGradGuard off;
    outputs = f(rows, inputs);
  }
  for (auto& t : outputs) torch::autograd::set_history(t, node);
  return outputs;
}

}  // namespace

std::vector<at::Tensor> run_stripes(const c10::SymInt& M, int64_t block, const std::vector<at::Tensor>& inputs,
                                    const StripeFunction& f, const std::vector<Combine>& combine) {
  const auto known = M.maybe_as_int();
  if (block < 1 || !known || *known <= block) return run_stripe({0, M, {}}, inputs, f);
  std::vector<std::vector<at::Tensor>> pieces(combine.size());
  for (int64_t begin = 0; begin < *known; begin += block) {
    const auto out = run_stripe({begin, std::min(begin + block, *known), {}}, inputs, f);
    for (size_t i = 0; i < combine.size(); ++i) {
      if (!out[i].defined()) continue;
      if (combine[i].dim >= 0 || pieces[i].empty()) pieces[i].push_back(out[i]);
      else pieces[i][0] = at::add(pieces[i][0], out[i]);   // in the order of the rows: the same sum on every machine
    }
  }
  std::vector<at::Tensor> whole(combine.size());
  for (size_t i = 0; i < combine.size(); ++i) {
    if (pieces[i].empty()) continue;
    whole[i] = combine[i].dim >= 0 ? at::cat(pieces[i], combine[i].dim) : pieces[i][0];
  }
  return whole;
}

int64_t stripe_rows(const Call& call) {
  constexpr int64_t kEntries = int64_t{1} << 22;   // 16 MiB of float32: several such tensors stay near the last cache
  const auto batch = call.B().maybe_as_int(), heads = call.H().maybe_as_int(), keys = call.N().maybe_as_int();
  if (!batch || !heads || !keys) return 0;
  return std::max<int64_t>(1, kEntries / std::max<int64_t>(1, *batch * *heads * *keys));
}

std::vector<at::Tensor> stripe_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                         const WeightFunction& f, const std::vector<at::Tensor>& extra, int64_t before,
                                         int64_t after, int64_t losses, int64_t block) {
  Call call;
  call.q = q;
  call.k = k;
  call.v = v;
  std::vector<at::Tensor> inputs = {q, k, v};
  inputs.insert(inputs.end(), extra.begin(), extra.end());
  const at::ScalarType compute = call.compute();
  const StripeFunction stripe = [=](const Rows& rows, const std::vector<at::Tensor>& in) {
    const c10::SymInt M = in[0].sym_size(2), heads = in[0].sym_size(1);
    const c10::SymInt first = rows.begin < before ? c10::SymInt(0) : rows.begin - before;
    const c10::SymInt last = rows.end + after > M ? M : rows.end + after;
    const at::Tensor scores = at::matmul(in[0].slice_symint(2, first, last).to(compute).mul(scale),
                                         repeat_heads(in[1].to(compute), heads).transpose(-2, -1));
    const c10::SymInt skipped = rows.begin - first;
    auto out = f({scores, rows, skipped.guard_int(__FILE__, __LINE__)}, {in.begin() + 3, in.end()});
    out[0] = at::matmul(out[0].to(compute), repeat_heads(in[2].to(compute), heads)).to(in[0].scalar_type());
    return out;
  };
  std::vector<Combine> combine = {Combine::concatenate(2)};
  combine.resize(static_cast<size_t>(1 + losses), Combine::sum());
  return run_stripes(q.sym_size(2), block > 0 ? block : stripe_rows(call), inputs, stripe, combine);
}

}  // namespace regard::ops
