#pragma once

#include <ATen/ATen.h>

#include "regard/nn/edit.h"

namespace regard {

/// The attention diversification loss of Guo et al., 2023. Of one attention with weights P (B, H, M, N):
///
///     a = mean_h P,   s = mean_i a,   x' = x where x > threshold / N, else 0
///     similarity = mean over batch and queries of <a'_i, s'> / (max(|a'_i|, 1e-8) max(|s'|, 1e-8))
///
/// in [0, 1]; the comparison with the threshold is a constant for derivatives; a row below it throughout counts 0.
/// Two passes over stripes of query rows, in memory O(M + N): s, then the cosines. Differentiable to any order.
at::Tensor attention_similarity(const Attending& call, double threshold);
/// torch.ops.regard.attention_similarity(q, k, threshold, scale=None): of plain softmax attention.
at::Tensor attention_similarity(const at::Tensor& q, const at::Tensor& k, double threshold,
                                std::optional<double> scale = std::nullopt);
/// The same of a stored map (B, H, M, N): torch.ops.regard.map_similarity(attn, threshold).
at::Tensor map_similarity(const at::Tensor& attn, double threshold);

/// ADL = sum of the layers' similarities / (layers + 1e-6): torch.ops.regard.diversification_loss(similarities).
at::Tensor diversification_loss(at::TensorList similarities);

}  // namespace regard
