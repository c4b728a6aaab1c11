#include "regard/ops/edited.h"

#include <c10/core/GradMode.h>

#include "regard/base/error.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/formula.h"
#include "regard/ops/stripe.h"

namespace regard::ops {
namespace {

std::string shape_of(const at::Tensor& t) {
  std::string text = std::string(toString(t.scalar_type())) + " of shape (";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

at::Tensor once(const WeightEdit& edit, const at::Tensor& weights, const Rows& rows,
                const std::vector<at::Tensor>& tensors) {
  const at::Tensor changed = edit.change(weights, rows, tensors);
  if (!changed.defined() || changed.dim() != weights.dim() || changed.sym_sizes() != weights.sym_sizes() ||
      changed.scalar_type() != weights.scalar_type())
    fail("edit", "weights like those given, " + shape_of(weights), changed.defined() ? shape_of(changed) : "none");
  return changed;
}

}  // namespace

std::vector<at::Tensor> tensors_of(const std::vector<WeightEdit>& edits) {
  std::vector<at::Tensor> all;
  for (const auto& edit : edits) all.insert(all.end(), edit.tensors.begin(), edit.tensors.end());
  return all;
}

at::Tensor edited(at::Tensor weights, const Rows& rows, const std::vector<WeightEdit>& edits,
                  const std::vector<at::Tensor>& tensors) {
  auto next = tensors.begin();
  for (const auto& edit : edits) {
    const auto end = next + static_cast<std::ptrdiff_t>(edit.tensors.size());
    weights = once(edit, weights, rows, {next, end});
    next = end;
  }
  return weights;
}

void check_edits(const Call& call, const std::vector<WeightEdit>& edits) {
  const auto rows = call.M().maybe_as_int();
  if (!c10::GradMode::is_enabled() || !rows || *rows == 0 || !concrete(call.q)) return;
  const Rows first{0, 1, {}};
  at::Tensor weights = at::zeros_symint({call.B(), call.H(), 1, call.N()}, call.q.options().dtype(call.compute()));
  for (const auto& edit : edits) {
    std::vector<at::Tensor> tensors;
    for (const auto& t : edit.tensors) tensors.push_back(t.detach());
    weights = once(edit, weights, first, tensors);
    if (weights.requires_grad())
      fail("edit", "every tensor that needs a gradient among the edit's tensors",
           "a change of the weights that reads another, whose gradient would be lost");
  }
}

AttentionOutput attention_edited(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const AttentionSpec& spec, const AttentionArguments& a,
                                 const std::vector<WeightEdit>& edits) {
  const auto some = [](const at::Tensor& t) { return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt; };
  require(a.path != "fused", "attention_edited", "a path that sees stripes of weights", "path fused");
  const Call call = make_call("attention", q, k, v, to_json(spec), a.captures, a.operands, some(a.sinks), some(a.seed),
                              a.query_offset);
  check_edits(call, edits);
  std::vector<at::Tensor> inputs = tensors_of(call);
  const size_t own_tensors = inputs.size();
  const std::vector<at::Tensor> more = tensors_of(edits);
  inputs.insert(inputs.end(), more.begin(), more.end());
  const StripeFunction stripe = [call, edits, own_tensors](const Rows& rows, const std::vector<at::Tensor>& in) {
    const auto split = in.begin() + static_cast<std::ptrdiff_t>(own_tensors);
    const Call own = with_tensors(call, {in.begin(), split});
    const Stripe s = attend(own, rows, [&](const at::Tensor& weights) {
      return edited(weights, rows, edits, {split, in.end()});
    });
    return std::vector<at::Tensor>{s.o.to(own.q.scalar_type()), s.lse, s.pairs};
  };
  const auto rows = Combine::concatenate(2);
  const auto out =
      run_stripes(call.M(), a.path == "composite" ? 0 : stripe_rows(call), inputs, stripe, {rows, rows, rows});
  if (!traced(q)) count_path("attention_edited", a.path == "composite" ? Path::composite : Path::stripe);
  return {out[0], out[1], out[2]};
}

}  // namespace regard::ops
