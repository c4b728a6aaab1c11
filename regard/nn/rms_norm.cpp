#include "regard/nn/rms_norm.h"

#include <ATen/OpMathType.h>

namespace regard {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const at::Tensor real = x.to(at::toOpMathType(x.scalar_type()));
  const at::Tensor y = (real * at::rsqrt(real.square().mean(-1, /*keepdim=*/true) + epsilon)).to(x.scalar_type());
  return weight.defined() ? y * weight : y;
}

}  // namespace regard
