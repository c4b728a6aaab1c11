#include "regard/nn/attention_weights.h"

#include "regard/ops/attention_map.h"

namespace regard {

at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec,
                             const AttentionArguments& arguments) {
  const at::Tensor rows = at::arange(at::Scalar(q.sym_size(2)), q.options().dtype(at::kLong));
  return attention_rows(q, k, rows, to_json(spec), arguments).to(q.scalar_type());
}

at::Tensor attention_column_sums(const Attending& call) {
  const at::Tensor ones =
      at::ones_symint({call.q.sym_size(0), call.q.sym_size(1), call.q.sym_size(2), 1}, call.q.options());
  return attention_transposed(call.q, call.k, ones, to_json(call.spec), call.arguments).squeeze(-1).sum(1);
}

}  // namespace regard
