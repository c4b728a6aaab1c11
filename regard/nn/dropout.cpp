#include "regard/nn/dropout.h"

#include "regard/base/error.h"
#include "regard/ops/counter_random.h"

namespace regard {

at::Tensor dropout(const at::Tensor& x, double p, Context& context) {
  if (p == 0 || !context.training) return x;
  const at::Tensor seed = context.stream("dropout").to(x.device());
  const at::Tensor kept = ops::random_event(1 - p, seed, ops::indices_of(x));
  return x * kept.to(x.scalar_type()) * (1 / (1 - p));
}

void require_probability(const char* function, const char* name, double p) {
  if (!(p >= 0 && p < 1)) fail(function, std::string("0 <= ") + name + " < 1", std::to_string(p));
}

}  // namespace regard
