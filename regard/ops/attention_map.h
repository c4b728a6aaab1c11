#pragma once

#include <ATen/ATen.h>

#include <string>

#include "regard/ops/attention.h"

/// The implicit attention map P (B, H, M, N), P_ij = normalizer(score_i.)_j weight_ij: products and statistics of it in
/// O(M + N) memory, differentiable to any order. P V is `attention` itself; row statistics are its pair outputs.
namespace regard {

/// P^T u for u (B, H, M, Du): (B, H, N, Du). Column sums are u = 1.
/// It is the gradient of attention by its values, so every path of the backward serves it.
at::Tensor attention_transposed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& u, const std::string& spec,
                                const AttentionArguments& arguments = {});

/// The chosen rows of P: rows int64 (R) -> (B, H, R, N).
at::Tensor attention_rows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& rows, const std::string& spec,
                          const AttentionArguments& arguments = {});

}  // namespace regard
