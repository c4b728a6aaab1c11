#include "regard/nn/attention_weights.h"

#include "regard/ops/taps.h"

namespace regard {
namespace {

at::Tensor measured(const Attending& call, const std::string& tap) {
  return attention_taps(call.q, call.k, call.spec, call.arguments, {tap}, {{}, call.after})[0];
}

}  // namespace

at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec,
                             const AttentionArguments& arguments) {
  return attention_taps(q, k, spec, arguments, {"rows"})[0].to(q.scalar_type());
}

at::Tensor attention_weights(const Attending& call) { return measured(call, "rows").to(call.q.scalar_type()); }

at::Tensor attention_column_sums(const Attending& call) { return measured(call, "column_sums").sum(1); }

}  // namespace regard
