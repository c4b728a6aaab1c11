// Gradients of regard::attention and regard::attention_backward, in every mode.
//
// Reverse: a hand-written node whose backward is the op attention_backward, called through the dispatcher, so that
// torch.func, torch.compile and the fused kernels see it. Forward mode, the composite path, and the derivative of the
// backward itself run the formulas of formula.h, which are ATen operations that torch differentiates to any order.
#include <torch/library.h>

#include "regard/ops/attention_op.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/boundary.h"
#include "regard/ops/node.h"
#include "regard/ops/stripe.h"

namespace regard::ops {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

/// q, k, v, sinks, captures, operands: the inputs that may carry a gradient, in one order everywhere.
std::vector<at::Tensor> inputs_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& sinks,
                                  at::TensorList captures, at::TensorList operands) {
  std::vector<at::Tensor> inputs = {q, k, v, defined(sinks)};
  inputs.insert(inputs.end(), captures.begin(), captures.end());
  inputs.insert(inputs.end(), operands.begin(), operands.end());
  return inputs;
}

struct AttentionBackward final : Node {
  std::string spec, path;
  c10::SymInt query_offset;
  size_t captures = 0;
  Saved inputs, outputs, seed;
  std::string name() const override { return "AttentionBackward"; }

  variable_list apply(variable_list&& grads) override {
    const auto in = inputs.unpack(nullptr), out = outputs.unpack(getptr());
    variable_list result(in.size());
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    std::array<bool, 6> wanted{};
    for (size_t i = 0; i < in.size(); ++i)
      if (task_should_compute_output(i)) wanted[group_of(i)] = true;
    const at::Tensor grad_o = grads[0].defined() ? grads[0] : at::zeros_symint(out[0].sym_sizes(), out[0].options());
    const auto some = [](const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    const auto first_operand = in.begin() + 4 + static_cast<std::ptrdiff_t>(captures);
    const auto g = call_attention_backward(grad_o, some(grads[1]), some(grads[2]), out[0], out[1], in[0], in[1], in[2], spec,
                                           at::TensorList(in).slice(4, captures),
                                           std::vector<at::Tensor>(first_operand, in.end()), some(in[3]),
                                           some(seed.unpack(nullptr)[0]), query_offset, path, wanted);
    variable_list all = {std::get<0>(g), std::get<1>(g), std::get<2>(g), std::get<3>(g)};
    all.insert(all.end(), std::get<4>(g).begin(), std::get<4>(g).end());
    all.insert(all.end(), std::get<5>(g).begin(), std::get<5>(g).end());
    for (size_t i = 0; i < in.size(); ++i)
      if (task_should_compute_output(i)) result[i] = i == 3 ? all[i].reshape_symint(in[i].sym_sizes()) : all[i];
    return result;
  }

  void release_variables() override {
    inputs.release();
    outputs.release();
    seed.release();
  }

 private:
  size_t group_of(size_t input) const { return input < 4 ? input : input < 4 + captures ? 4 : 5; }
};

AttentionResult attention_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, c10::string_view spec,
                                   at::TensorList captures, at::TensorList operands, const OptionalTensor& sinks,
                                   const OptionalTensor& seed, c10::SymInt query_offset, c10::string_view path) {
  const auto inputs = inputs_of(q, k, v, sinks, captures, operands);
  const bool differentiated = any_requires_grad(inputs), forward = any_forward_grad(inputs);
  if (forward || (differentiated && path == "composite")) {
    const Call call = make_call("attention", q, k, v, std::string(spec), captures, operands, sinks, seed, query_offset);
    const bool composite = path == "composite";
    if (concrete(q)) count_path("attention", composite ? Path::composite : Path::stripe);
    const Stripe out = attend_in_stripes(call, composite ? 0 : stripe_rows(call));
    return {out.o.to(q.scalar_type()), out.lse, out.pairs};
  }
  AttentionResult out;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    out = call_attention(q, k, v, spec, captures, operands, sinks, seed, query_offset, path);
  }
  if (!differentiated) return out;
  auto node = make_node<AttentionBackward>();
  node->set_next_edges(edges_of(inputs));
  node->spec = std::string(spec);
  node->path = std::string(path);
  node->query_offset = query_offset;
  node->captures = captures.size();
  node->inputs.save(inputs);
  node->seed.save({defined(seed)});
  auto& [o, lse, pairs] = out;
  torch::autograd::set_history(o, node);
  torch::autograd::set_history(lse, node);
  torch::autograd::set_history(pairs, node);
  node->outputs.save_output(o);
  node->outputs.save_output(lse);
  return out;
}

AttentionGradients attention_backward_autograd(const at::Tensor& grad_o, const OptionalTensor& grad_lse,
                                               const OptionalTensor& grad_pairs, const at::Tensor& o, const at::Tensor& lse,
                                               const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                               c10::string_view spec, at::TensorList captures, at::TensorList operands,
                                               const OptionalTensor& sinks, const OptionalTensor& seed,
                                               c10::SymInt query_offset, c10::string_view path, std::array<bool, 6> wanted) {
  auto inputs = inputs_of(q, k, v, sinks, captures, operands);
  inputs.insert(inputs.end(), {grad_o, defined(grad_lse), defined(grad_pairs)});
  if (!any_requires_grad(inputs) && !any_forward_grad(inputs)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_attention_backward(grad_o, grad_lse, grad_pairs, o, lse, q, k, v, spec, captures, operands, sinks, seed,
                                   query_offset, path, wanted);
  }
  // Second derivatives: o and lse are functions of the inputs and are recomputed as such, never read.
  const Call call = make_call("attention_backward", q, k, v, std::string(spec), captures, operands, sinks, seed, query_offset);
  if (concrete(q)) count_path("attention_backward", Path::stripe);
  const Wanted want{wanted[0], wanted[1], wanted[2], wanted[4], wanted[5], wanted[3]};
  const StripeGradient g = attend_backward_in_stripes(call, stripe_rows(call), grad_o, defined(grad_lse), defined(grad_pairs), want);
  return packed(g, call, want);
}

}  // namespace

TORCH_LIBRARY_IMPL(regard, Autograd, m) {
  m.impl("attention", guarded<&attention_autograd>);
  m.impl("attention_backward", guarded<&attention_backward_autograd>);
}

}  // namespace regard::ops
