#include "regard/nn/dropout.h"

#include "regard/base/error.h"
#include "regard/ops/counter_random.h"

namespace regard {

at::Tensor dropout(const at::Tensor& x, double p, Context& context) {
  if (p == 0 || !context.training) return x;
  const at::Tensor seed = context.stream("dropout").to(x.device());
  const auto integer = seed.options();
  std::vector<at::Tensor> indices;
  for (int64_t d = 0; d < x.dim(); ++d) {
    std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
    shape[static_cast<size_t>(d)] = -1;
    indices.push_back(at::arange(at::Scalar(x.sym_size(d)), integer).view(shape));
  }
  const at::Tensor kept = ops::keep_with_probability(1 - p, seed, indices);
  return x * kept.to(x.scalar_type()) * (1 / (1 - p));
}

void require_probability(const char* function, const char* name, double p) {
  if (!(p >= 0 && p < 1)) fail(function, std::string("0 <= ") + name + " < 1", std::to_string(p));
}

}  // namespace regard
