#include "regard/nn/pooling/tokens.h"

#include <ATen/OpMathType.h>

#include <limits>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"

namespace regard {

PoolTokens::PoolTokens(const std::string& function, const at::Tensor& given, Context& context, bool include_prefix)
    : context_(context) {
  x = given.dim() == 3 ? given : given.flatten(2).transpose(1, 2);
  lengths = context.input("lengths");
  tokens_ = context.tokens(x);
  if (lengths.defined()) padded = context.padding(x);
  if (!include_prefix && context.prefix > 0) {
    tokens_ = tokens_ - context.prefix;
    if (padded.defined()) padded = context.behind_prefix(padded);
    x = context.behind_prefix(x);
    if (lengths.defined()) lengths = (lengths - context.prefix).clamp_min(0);
  }
  if (TORCH_GUARD_OR_FALSE(tokens_.sym_le(0)))
    fail(function, "at least one token to pool", describe(given) + " with prefix " + std::to_string(context.prefix));
  if (!lengths.defined()) return;
  empty = lengths.eq(0);
  x = x.masked_fill(padded.unsqueeze(2), 0);
}

at::Tensor PoolTokens::filled(const at::Tensor& tensor, double value) const {
  if (!padded.defined()) return tensor;
  return tensor.masked_fill((padded & ~empty.unsqueeze(1)).unsqueeze(2), value);
}

at::Tensor PoolTokens::count() const {
  if (padded.defined()) return context_.total((~padded).sum(1, /*keepdim=*/true)).clamp_min(1).to(x.scalar_type());
  return at::scalar_tensor(at::Scalar(tokens_), x.options().requires_grad(std::nullopt));
}

at::Tensor PoolTokens::sum(const at::Tensor& tensor) const {
  return context_.total((padded.defined() ? tensor.masked_fill(padded.unsqueeze(2), 0) : tensor).sum(1));
}

at::Tensor PoolTokens::mean(const at::Tensor& tensor) const {
  // In float32 at least: the sum of many half-precision features leaves their range.
  const at::Tensor wide = tensor.to(at::toOpMathType(tensor.scalar_type()));
  return (sum(wide) / count().to(wide.scalar_type())).to(tensor.scalar_type());
}

at::Tensor PoolTokens::greatest(const at::Tensor& tensor) const {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const at::Tensor all = filled(tensor, -infinity);
  // A shard without tokens has the maximum of nothing.
  const bool none = TORCH_GUARD_OR_FALSE(all.sym_size(1).sym_eq(0));
  return context_.greatest(none ? all.sum(1) - infinity : std::get<0>(all.max(1)));
}

at::Tensor PoolTokens::finish(const at::Tensor& y) const {
  return empty.defined() ? y.masked_fill(empty.unsqueeze(1), 0) : y;
}

}  // namespace regard
