#include "regard/nn/dense/alibi.h"

namespace regard {

at::Tensor alibi_slopes(int64_t heads, const at::TensorOptions& options) {
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  const double p = static_cast<double>(power);
  const auto real = options.dtype(at::kFloat);
  const at::Tensor own = at::exp2((at::arange(power, real) + 1) * (-8 / p));
  const at::Tensor between = at::exp2((at::arange(heads - power, real) * 2 + 1) * (-4 / p));
  return at::cat({own, between});
}

}  // namespace regard
