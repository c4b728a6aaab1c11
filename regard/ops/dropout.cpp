#include "regard/ops/dropout.h"

namespace regard::ops {
namespace {

constexpr int64_t kMask = 0xffffffff;

// A 32-bit integer hash of full avalanche (xor-shift and multiply, after C. Wellons' search for such constants),
// computed in the low half of int64 tensors: products wrap, and the mask keeps 32 bits.
at::Tensor mix(at::Tensor x) {
  x = at::bitwise_xor(x, x.bitwise_right_shift(16));
  x = at::bitwise_and(at::mul(x, int64_t{0x7feb352d}), kMask);
  x = at::bitwise_xor(x, x.bitwise_right_shift(15));
  x = at::bitwise_and(at::mul(x, int64_t{0x846ca68b}), kMask);
  return at::bitwise_xor(x, x.bitwise_right_shift(16));
}

at::Tensor absorb(const at::Tensor& state, const at::Tensor& word) {
  return mix(at::bitwise_and(at::add(at::bitwise_xor(state, at::bitwise_and(word, kMask)), int64_t{0x9e3779b9}), kMask));
}

}  // namespace

at::Tensor dropout_factor(const Call& call, const Rows& rows) {
  const auto integer = call.q.options().dtype(at::kLong).requires_grad(std::nullopt);
  const at::Tensor seed = call.seed.to(integer.device());
  const at::Tensor batch = at::arange(c10::Scalar(call.B()), integer).view_symint({-1, 1, 1, 1});
  const at::Tensor head = at::arange(c10::Scalar(call.H()), integer).view_symint({1, -1, 1, 1});
  const at::Tensor query = rows.index(integer).add(c10::Scalar(call.query_offset)).view_symint({1, 1, -1, 1});
  const at::Tensor key = at::arange(c10::Scalar(call.N()), integer).view_symint({1, 1, 1, -1});
  at::Tensor state = absorb(mix(at::bitwise_and(seed, kMask)), seed.bitwise_right_shift(32));
  for (const at::Tensor& word : {batch, head, query, key}) state = absorb(state, word);
  const double keep = 1 - call.spec->dropout;
  // state < keep * 2^32 with probability keep
  const at::Tensor kept = state.lt(static_cast<int64_t>(keep * 4294967296.0));
  return kept.to(call.compute()).mul(keep > 0 ? 1 / keep : 0.0);
}

}  // namespace regard::ops
