#include "regard/nn/pooling/tokens.h"

#include "regard/base/error.h"
#include "regard/nn/shapes.h"

namespace regard {

PoolTokens::PoolTokens(const std::string& function, const at::Tensor& given, const Context& context,
                       bool include_prefix) {
  x = given.dim() == 3 ? given : given.flatten(2).transpose(1, 2);
  lengths = context.input("lengths");
  if (!include_prefix && context.prefix > 0) {
    x = x.slice(1, context.prefix);
    if (lengths.defined()) lengths = (lengths - context.prefix).clamp_min(0);
  }
  if (TORCH_GUARD_OR_FALSE(x.sym_size(1).sym_eq(0)))
    fail(function, "at least one token to pool", describe(given) + " with prefix " + std::to_string(context.prefix));
  if (!lengths.defined()) return;
  padded = padding(lengths, x.sym_size(1));
  empty = padded.all(1);
  x = x.masked_fill(padded.unsqueeze(2), 0);
}

at::Tensor PoolTokens::filled(const at::Tensor& tensor, double value) const {
  if (!padded.defined()) return tensor;
  return tensor.masked_fill((padded & ~empty.unsqueeze(1)).unsqueeze(2), value);
}

at::Tensor PoolTokens::count() const {
  if (!padded.defined()) return at::scalar_tensor(at::Scalar(x.sym_size(1)), x.options());
  return (~padded).sum(1, /*keepdim=*/true).clamp_min(1).to(x.scalar_type());
}

at::Tensor PoolTokens::mean(const at::Tensor& tensor) const {
  if (!padded.defined()) return tensor.mean(1);
  return tensor.masked_fill(padded.unsqueeze(2), 0).sum(1) / count();
}

at::Tensor PoolTokens::finish(const at::Tensor& y) const {
  return empty.defined() ? y.masked_fill(empty.unsqueeze(1), 0) : y;
}

}  // namespace regard
