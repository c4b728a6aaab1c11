// Gradients of regard::attend and regard::attention_backward, in every mode.
//
// Reverse: a hand-written node whose backward is the op attention_backward, called through the dispatcher, so that
// torch.func, torch.compile and the fused kernels see it. Forward mode, the composite path, and the derivative of the
// backward itself run the formulas of formula.h, which are ATen operations that torch differentiates to any order.
#include <torch/library.h>

#include "regard/base/error.h"
#include "regard/ops/attention_op.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/boundary.h"
#include "regard/ops/node.h"
#include "regard/ops/stripe.h"

namespace regard::ops {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

/// Derivatives that no fused kernel has (forward mode, the derivative of the backward) run the formulas under a counter
/// of their own; in strict mode that is an error where the path was left open or asked to be fused.
void count_formula(const char* op, const Call& call, c10::string_view path) {
  const Path named = path_from_name(op, path);
  if (strict() && (named == Path::automatic || named == Path::fused))
    fail(op, "a derivative that the fused path has, because strict is on", "one that runs in stripes");
  if (!traced(call.q)) count_path(op, named == Path::composite ? Path::composite : Path::stripe);
}

struct AttentionBackward final : Node {
  std::shared_ptr<const SpecFacts> facts;
  std::string path;
  c10::SymInt query_offset;
  Saved inputs, outputs, seed;  // inputs: q, k, v, captures, operands, sinks
  std::string name() const override { return "AttentionBackward"; }

  variable_list apply(variable_list&& grads) override {
    const auto in = inputs.unpack(nullptr), out = outputs.unpack(getptr());
    const size_t sinks = in.size() - 1, captures = facts->captures.size();
    variable_list result(in.size());
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    std::array<bool, 6> wanted{};  // q, k, v, sinks, captures, operands
    for (size_t i = 0; i < in.size(); ++i)
      if (task_should_compute_output(i)) wanted[i < 3 ? i : i == sinks ? 3 : i < 3 + captures ? 4 : 5] = true;
    const at::Tensor grad_o = grads[0].defined() ? grads[0] : at::zeros_symint(out[0].sym_sizes(), out[0].options());
    const auto some = [](const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    const at::TensorList list(in);
    const auto [dq, dk, dv, dsinks, dcaptures, doperands] =
        call_attention_backward(grad_o, some(grads[1]), some(grads[2]), out[0], out[1], in[0], in[1], in[2],
                                facts->text, list.slice(3, captures), list.slice(3 + captures, sinks - 3 - captures),
                                some(in[sinks]), some(seed.unpack(nullptr)[0]), query_offset, path, wanted);
    variable_list all = {dq, dk, dv};
    all.insert(all.end(), dcaptures.begin(), dcaptures.end());
    all.insert(all.end(), doperands.begin(), doperands.end());
    for (size_t i = 0; i < sinks; ++i)
      if (task_should_compute_output(i)) result[i] = all[i];
    if (task_should_compute_output(sinks)) result[sinks] = dsinks.reshape_symint(in[sinks].sym_sizes());
    return result;
  }

  void release_variables() override {
    inputs.release();
    outputs.release();
    seed.release();
  }
};

AttentionResult attend_autograd(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks,
                                const OptionalTensor& seed, c10::SymInt query_offset, c10::string_view path) {
  std::vector<at::Tensor> inputs = tensors.vec();
  inputs.push_back(defined(sinks));
  const bool differentiated = any_requires_grad(inputs), forward = any_forward_grad(inputs);
  const auto facts = facts_of(spec);
  const size_t captures = facts->captures.size();
  if (forward || (differentiated && path == "composite")) {
    const Call call = make_call("attention", tensors[0], tensors[1], tensors[2], spec, tensors.slice(3, captures),
                                tensors.slice(3 + captures), sinks, seed, query_offset);
    const bool composite = path_from_name("attention", path) == Path::composite;
    if (forward)
      count_formula("attention_forward_mode", call, path);
    else if (!traced(call.q))
      count_path("attention", Path::composite);
    const Stripe out = attend_in_stripes(call, composite ? 0 : stripe_rows(call));
    return {out.o.to(call.q.scalar_type()), out.lse, out.pairs};
  }
  AttentionResult out;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    out = call_attend(tensors, spec, sinks, seed, query_offset, path);
  }
  if (!differentiated) return out;
  auto node = make_node<AttentionBackward>();
  node->set_next_edges(edges_of(inputs));
  node->facts = facts;
  node->path = std::string(path);
  node->query_offset = query_offset;
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
                                               const OptionalTensor& grad_pairs, const at::Tensor& o,
                                               const at::Tensor& lse, const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v, c10::string_view spec, at::TensorList captures,
                                               at::TensorList operands, const OptionalTensor& sinks,
                                               const OptionalTensor& seed, c10::SymInt query_offset,
                                               c10::string_view path, std::array<bool, 6> wanted) {
  std::vector<at::Tensor> inputs = {q, k, v, defined(sinks), grad_o, defined(grad_lse), defined(grad_pairs)};
  inputs.insert(inputs.end(), captures.begin(), captures.end());
  inputs.insert(inputs.end(), operands.begin(), operands.end());
  if (!any_requires_grad(inputs) && !any_forward_grad(inputs)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_attention_backward(grad_o, grad_lse, grad_pairs, o, lse, q, k, v, spec, captures, operands, sinks, seed,
                                   query_offset, path, wanted);
  }
  // Second derivatives: o and lse are functions of the inputs and are recomputed as such, never read.
  const Call call = make_call("attention_backward", q, k, v, spec, captures, operands, sinks, seed, query_offset);
  count_formula("attention_backward_derivative", call, path);
  const Wanted want{wanted[0], wanted[1], wanted[2], wanted[4], wanted[5], wanted[3]};
  const StripeGradient g =
      attend_backward_in_stripes(call, stripe_rows(call), grad_o, defined(grad_lse), defined(grad_pairs), want);
  return packed(g, call, want);
}

}  // namespace

TORCH_LIBRARY_IMPL(regard, Autograd, m) {
  m.impl("attend", guarded<&attend_autograd>);
  m.impl("attention_backward", guarded<&attention_backward_autograd>);
}

}  // namespace regard::ops
