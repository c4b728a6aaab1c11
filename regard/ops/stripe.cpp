#include "regard/ops/stripe.h"

#include <algorithm>

#include "regard/ops/evaluate.h"
#include "regard/ops/node.h"

namespace regard::ops {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

/// Recomputes one stripe and differentiates it. With create_graph the recomputation stays connected to the saved
/// inputs, so gradients of any order follow.
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

bool recorded(const std::vector<at::Tensor>& inputs) {
  return any_requires_grad(inputs) || any_forward_grad(inputs) || !can_recompute(inputs);
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

/// One output over all stripes. Numbers that nobody differentiates are written into place: small pieces kept between
/// the large temporaries of the stripes would break up the heap. Sums add in the order of the rows: equal on every
/// machine.
class Collected {
 public:
  Collected(Combine combine, int64_t rows, bool in_place) : combine_(combine), rows_(rows), in_place_(in_place) {}

  void add(const at::Tensor& piece, int64_t begin, int64_t count) {
    if (!piece.defined()) return;
    if (combine_.dim < 0) {
      if (!whole_.defined())
        whole_ = in_place_ ? piece.clone() : piece;
      else if (in_place_)
        whole_.add_(piece);
      else
        whole_ = at::add(whole_, piece);
    } else if (!in_place_) {
      pieces_.push_back(piece);
    } else {
      if (!whole_.defined()) {
        std::vector<int64_t> sizes = piece.sizes().vec();
        sizes[static_cast<size_t>(combine_.dim)] = rows_;
        whole_ = at::empty(sizes, piece.options());
      }
      whole_.narrow(combine_.dim, begin, count).copy_(piece);
    }
  }

  at::Tensor result() const { return pieces_.empty() ? whole_ : at::cat(pieces_, combine_.dim); }

 private:
  Combine combine_;
  int64_t rows_;
  bool in_place_;
  at::Tensor whole_;
  std::vector<at::Tensor> pieces_;
};

}  // namespace

std::vector<at::Tensor> run_stripes(const c10::SymInt& M, int64_t block, const std::vector<at::Tensor>& inputs,
                                    const StripeFunction& f, const std::vector<Combine>& combine) {
  const auto known = M.maybe_as_int();
  if (block < 1 || !known || *known <= block) return run_stripe({0, M, {}}, inputs, f);
  std::vector<Collected> collected;
  for (const Combine& how : combine) collected.emplace_back(how, *known, !recorded(inputs));
  for (int64_t begin = 0; begin < *known; begin += block) {
    const int64_t end = std::min(begin + block, *known);
    const auto out = run_stripe({begin, end, {}}, inputs, f);
    for (size_t i = 0; i < combine.size(); ++i) collected[i].add(out[i], begin, end - begin);
  }
  std::vector<at::Tensor> whole;
  for (const Collected& c : collected) whole.push_back(c.result());
  return whole;
}

int64_t stripe_rows(const Call& call) {
  constexpr int64_t kEntries = int64_t{1} << 22;  // 16 MiB of float32: several such tensors stay near the last cache
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
