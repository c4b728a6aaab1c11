#pragma once

#include <ATen/ATen.h>

#include <vector>

/// Counter-based random numbers: pure functions of a seed and of where they are used, so that a recomputation, another
/// device and another split of the work draw the same.
namespace regard::ops {

/// 32 random bits, in [0, 2^32), for each element of the broadcast of `indices` (int64 tensors); seed int64 scalar.
at::Tensor random_bits(const at::Tensor& seed, const std::vector<at::Tensor>& indices);

/// true with probability p, one draw for each element of the broadcast of `indices`.
at::Tensor random_event(double p, const at::Tensor& seed, const std::vector<at::Tensor>& indices);

/// For each dimension of x, its indices: (L, 1, 1), (1, M, 1), (1, 1, N), int64. They broadcast to x's shape.
std::vector<at::Tensor> indices_of(const at::Tensor& x);

}  // namespace regard::ops
