#include "regard/nn/dense/rotary.h"

#include <ATen/OpMathType.h>

namespace regard {

at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, double theta, int64_t width, bool interleaved) {
  const auto real = x.options().dtype(at::toOpMathType(x.scalar_type()));
  const at::Tensor exponents = at::arange(0, width, 2, real) / static_cast<double>(width);
  const at::Tensor frequencies = at::pow(theta, exponents.neg());
  at::Tensor angles = positions.to(real).unsqueeze(-1) * frequencies;  // (L, W/2) or (B, L, W/2)
  if (angles.dim() == 3) angles = angles.unsqueeze(1);
  const at::Tensor cos = angles.cos(), sin = angles.sin();

  const at::Tensor turning = x.slice(-1, 0, width).to(real);
  const int64_t pair_dim = interleaved ? -1 : -2;
  const std::vector<int64_t> pairs = interleaved ? std::vector<int64_t>{-1, 2} : std::vector<int64_t>{2, -1};
  const auto both = turning.unflatten(-1, pairs).unbind(pair_dim);
  const at::Tensor turned =
      at::stack({both[0] * cos - both[1] * sin, both[1] * cos + both[0] * sin}, pair_dim).flatten(-2);
  return at::cat({turned.to(x.scalar_type()), x.slice(-1, width)}, -1);
}

}  // namespace regard
