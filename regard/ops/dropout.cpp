#include "regard/ops/dropout.h"

#include "regard/ops/counter_random.h"
#include "regard/ops/positions.h"

namespace regard::ops {

at::Tensor dropout_factor(const Call& call, const Rows& rows) {
  const auto integer = call.q.options().dtype(at::kLong).requires_grad(std::nullopt);
  const at::Tensor sequence = sequence_of_rows(call, rows).unsqueeze(1).unsqueeze(-1);
  const at::Tensor head = at::arange(c10::Scalar(call.H()), integer).view({1, -1, 1, 1});
  const at::Tensor query = query_positions(call, rows).unsqueeze(1).unsqueeze(-1);
  const at::Tensor key = key_positions(call).unsqueeze(1).unsqueeze(1);
  const double keep = 1 - call.spec->dropout;
  const at::Tensor kept = random_event(keep, call.seed.to(integer.device()), {sequence, head, query, key});
  return kept.to(call.compute()).mul(keep > 0 ? 1 / keep : 0.0);
}

}  // namespace regard::ops
