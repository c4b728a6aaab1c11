#include "regard/ops/dropout.h"

#include "regard/ops/counter_random.h"

namespace regard::ops {

at::Tensor dropout_factor(const Call& call, const Rows& rows) {
  const auto integer = call.q.options().dtype(at::kLong).requires_grad(std::nullopt);
  const auto range = [&](const c10::SymInt& length, at::IntArrayRef shape) {
    return at::arange(c10::Scalar(length), integer).view(shape);
  };
  const at::Tensor query = rows.index(integer).add(c10::Scalar(call.query_offset)).view({1, 1, -1, 1});
  const double keep = 1 - call.spec->dropout;
  const at::Tensor kept = random_event(
      keep, call.seed.to(integer.device()),
      {range(call.B(), {-1, 1, 1, 1}), range(call.H(), {1, -1, 1, 1}), query, range(call.N(), {1, 1, 1, -1})});
  return kept.to(call.compute()).mul(keep > 0 ? 1 / keep : 0.0);
}

}  // namespace regard::ops
