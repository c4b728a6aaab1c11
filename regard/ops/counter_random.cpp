#include "regard/ops/counter_random.h"

namespace regard::ops {
namespace {

constexpr int64_t low_bits = 0xffffffff;

/// A bijection of 32 bits with full avalanche, held in int64. Multipliers below 2^31: no product leaves int64.
at::Tensor mix(at::Tensor x) {
  x = at::bitwise_xor(x, x.bitwise_right_shift(16));
  x = at::bitwise_and(x * int64_t{0x7feb352d}, low_bits);
  x = at::bitwise_xor(x, x.bitwise_right_shift(15));
  x = at::bitwise_and(x * int64_t{0x31848bab}, low_bits);
  return at::bitwise_xor(x, x.bitwise_right_shift(14));
}

/// The golden ratio keeps a run of zeros from staying zero.
at::Tensor absorb(const at::Tensor& state, const at::Tensor& word) {
  return mix(at::bitwise_and(at::bitwise_xor(state, at::bitwise_and(word, low_bits)) + int64_t{0x9e3779b9}, low_bits));
}

}  // namespace

at::Tensor random_bits(const at::Tensor& seed, const std::vector<at::Tensor>& indices) {
  at::Tensor state = absorb(mix(at::bitwise_and(seed, low_bits)), seed.bitwise_right_shift(32));
  for (const auto& index : indices) state = absorb(state, index);
  return state;
}

at::Tensor random_event(double p, const at::Tensor& seed, const std::vector<at::Tensor>& indices) {
  return random_bits(seed, indices) < static_cast<int64_t>(p * 4294967296.0);
}

std::vector<at::Tensor> indices_of(const at::Tensor& x) {
  std::vector<at::Tensor> indices;
  for (int64_t d = 0; d < x.dim(); ++d) {
    std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
    shape[static_cast<size_t>(d)] = -1;
    indices.push_back(at::arange(at::Scalar(x.sym_size(d)), x.options().dtype(at::kLong)).view(shape));
  }
  return indices;
}

}  // namespace regard::ops
