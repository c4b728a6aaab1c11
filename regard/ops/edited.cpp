#include "regard/ops/edited.h"

#include "regard/base/error.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/evaluate.h"
#include "regard/ops/formula.h"
#include "regard/ops/stripe.h"

namespace regard::ops {

AttentionOutput attention_edited(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const AttentionSpec& spec, const AttentionArguments& a, const WeightEdit& edit) {
  const auto some = [](const at::Tensor& t) { return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt; };
  require(spec.pair_outputs.empty(), "attention_edited", "a spec without pair outputs", "pair outputs");
  require(a.path != "fused", "attention_edited", "a path that sees stripes of weights", "path fused");
  const Call call = make_call("attention", q, k, v, to_json(spec), a.captures, a.operands, some(a.sinks), some(a.seed),
                              a.query_offset);
  const StripeFunction stripe = [call, edit](const Rows& rows, const std::vector<at::Tensor>& in) {
    const Call own = with_tensors(call, in);
    const at::Tensor weights = edit(attention_weights(own, rows), rows);
    return std::vector<at::Tensor>{at::matmul(weights, repeat_heads(own.v.to(call.compute()), call.H()))
                                       .to(own.q.scalar_type()),
                                   attend(own, rows).lse};
  };
  const auto rows = Combine::concatenate(2);
  const auto out = run_stripes(call.M(), a.path == "composite" ? 0 : stripe_rows(call), tensors_of(call), stripe,
                               {rows, rows});
  return {out[0], out[1], at::zeros_symint({call.B(), call.H(), call.M(), 0}, out[1].options())};
}

}  // namespace regard::ops
