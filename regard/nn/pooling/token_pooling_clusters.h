#pragma once

#include <ATen/ATen.h>

namespace regard {

/// (B, K) int64: the token farthest from the mean, then K - 1 times the one farthest from its nearest among those
/// chosen (the first on ties). x (B, N, D); padded (B, N) boolean or undefined: tokens never chosen while others are
/// left. torch.ops.regard.farthest_points; no gradient.
at::Tensor farthest_points(const at::Tensor& x, const at::Tensor& padded, const c10::SymInt& count);

/// |a_i - b_j|^2 (B, P, Q) from the Gram matrix of a (B, P, D) and b (B, Q, D), never below 0.
at::Tensor squared_distances(const at::Tensor& a, const at::Tensor& b);

}  // namespace regard
