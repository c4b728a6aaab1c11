#include "regard/models/drop.h"

#include <algorithm>
#include <vector>

#include "regard/ops/counter_random.h"

namespace regard {
namespace {

at::Tensor samples_of(const at::Tensor& x) {
  return at::arange(at::Scalar(x.sym_size(0)), x.options().dtype(at::kLong));
}

}  // namespace

at::Tensor drop_path(const at::Tensor& x, double p, Context& context) {
  if (p == 0 || !context.training) return x;
  const at::Tensor seed = context.stream("drop_path").to(x.device());
  at::Tensor kept = ops::random_event(1 - p, seed, {samples_of(x)}).to(x.scalar_type());
  for (int64_t d = 1; d < x.dim(); ++d) kept = kept.unsqueeze(-1);
  return x * kept * (1 / (1 - p));
}

at::Tensor drop_patches(const at::Tensor& x, int64_t prefix, int64_t patches, double p, Context& context) {
  const int64_t kept = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(patches) * (1 - p)));
  const at::Tensor seed = context.stream("drop_patches").to(x.device());
  const at::Tensor token = at::arange(patches, x.options().dtype(at::kLong));
  const at::Tensor drawn = ops::random_bits(seed, {samples_of(x).unsqueeze(1), token});
  const at::Tensor order = at::argsort(drawn, /*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const at::Tensor index = order.narrow(1, 0, kept).unsqueeze(-1).expand_symint({x.sym_size(0), kept, x.sym_size(2)});
  const at::Tensor chosen = at::gather(x.narrow(1, prefix, patches), 1, index);
  return prefix == 0 ? chosen : at::cat({x.narrow(1, 0, prefix), chosen}, 1);
}

}  // namespace regard
