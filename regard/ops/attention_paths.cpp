#include "regard/ops/attention_paths.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/ops/blocked.h"
#include "regard/ops/evaluate.h"
#include "regard/ops/stripe.h"

namespace regard::ops {
namespace {

/// Whether no number among them is infinite or NaN; false where that cannot be seen (while tracing).
bool all_finite(const std::vector<at::Tensor>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) {
    return !t.defined() || !at::isFloatingType(t.scalar_type()) ||
           (concrete(t) && at::isfinite(t.detach()).all().item<bool>());
  });
}

}  // namespace

std::vector<at::Tensor> tensors_of(const Call& call) {
  std::vector<at::Tensor> out = {call.q, call.k, call.v, call.sinks};
  out.insert(out.end(), call.captures.begin(), call.captures.end());
  out.insert(out.end(), call.operands.begin(), call.operands.end());
  return out;
}

Call with_tensors(const Call& call, const std::vector<at::Tensor>& tensors) {
  Call out = call;
  out.q = tensors[0];
  out.k = tensors[1];
  out.v = tensors[2];
  out.sinks = tensors[3];
  const auto captures = tensors.begin() + 4, operands = captures + static_cast<std::ptrdiff_t>(call.captures.size());
  out.captures.assign(captures, operands);
  out.operands.assign(operands, operands + static_cast<std::ptrdiff_t>(call.operands.size()));
  return out;
}

Path choose_path(const char* function, const Call& call, std::string_view requested) {
  const Path path = path_from_name(function, requested);
  if (path == Path::stripe || path == Path::composite) return path;
  const std::string refusal = fused_refusal(call);
  if (refusal.empty()) return Path::fused;
  if (path == Path::fused) fail(function, "a call that the fused path runs", refusal);
  if (strict()) fail(function, "a call that the fused path runs, because strict is on", refusal);
  return Path::stripe;
}

Stripe attend_in_stripes(const Call& given, int64_t block) {
  Call call = given;
  call.finite = all_finite(tensors_of(call));
  const StripeFunction stripe = [call](const Rows& rows, const std::vector<at::Tensor>& in) {
    const Stripe s = attend(with_tensors(call, in), rows);
    return std::vector<at::Tensor>{s.o, s.lse, s.pairs};
  };
  const auto rows = Combine::concatenate(2);
  const auto out = run_stripes(call.M(), block, tensors_of(call), stripe, {rows, rows, rows});
  return {out[0], out[1], out[2]};
}

StripeGradient attend_backward_in_stripes(const Call& given, int64_t block, const at::Tensor& grad_o,
                                          const at::Tensor& grad_lse, const at::Tensor& grad_pairs,
                                          const Wanted& wanted) {
  Call call = given;
  std::vector<at::Tensor> inputs = tensors_of(call);
  const size_t grads = inputs.size();
  inputs.insert(inputs.end(), {grad_o, grad_lse, grad_pairs});
  call.finite = all_finite(inputs);
  const size_t captures = call.captures.size(), operands = call.operands.size();
  const std::vector<int64_t> owned = capture_row_dims(call);
  const StripeFunction stripe = [=](const Rows& rows, const std::vector<at::Tensor>& in) {
    const auto part = [&](size_t i) { return in[grads + i].defined() ? rows.of(in[grads + i], 2) : at::Tensor(); };
    StripeGradient g = attend_backward(with_tensors(call, in), rows, part(0), part(1), part(2), wanted);
    std::vector<at::Tensor> out = {g.q, g.k, g.v, g.sinks};
    for (size_t i = 0; i < captures; ++i)  // row-owned pieces with their rows first, so that all concatenate along 0
      out.push_back(g.captures[i].defined() && owned[i] >= 0 ? g.captures[i].movedim(owned[i], 0) : g.captures[i]);
    out.insert(out.end(), g.operands.begin(), g.operands.end());
    return out;
  };
  StripeGradient out;
  std::vector<Combine> combine = {Combine::concatenate(2), Combine::sum(), Combine::sum(), Combine::sum()};
  for (size_t i = 0; i < captures; ++i) combine.push_back(owned[i] >= 0 ? Combine::concatenate(0) : Combine::sum());
  for (size_t i = 0; i < operands; ++i) combine.push_back(i % 2 == 0 ? Combine::concatenate(2) : Combine::sum());
  const auto whole = run_stripes(call.M(), block, inputs, stripe, combine);
  out.q = whole[0];
  out.k = whole[1];
  out.v = whole[2];
  out.sinks = whole[3];
  for (size_t i = 0; i < captures; ++i) {
    at::Tensor g = whole[4 + i];
    if (g.defined() && owned[i] >= 0) {
      g = g.movedim(0, owned[i]);
      g = pad_to(g, std::vector<c10::SymInt>(static_cast<size_t>(g.dim()), 0), call.captures[i].sym_sizes());
    }
    out.captures.push_back(g);
  }
  out.operands.assign(whole.begin() + 4 + static_cast<std::ptrdiff_t>(captures), whole.end());
  return out;
}

}  // namespace regard::ops
