#pragma once

#include "regard/models/vit.h"
#include "regard/nn/blackboard.h"

namespace regard {

/// The layer of the pools map and prr, which attend.
inline constexpr const char* vit_attention_pool = "attn_pool";

/// One row for the image from the tokens x (B, P + N, D), by config.pool or config.global_pool:
///
///     token x_0;  avg, max over patches;  avgmax (avg + max) / 2;  '' the tokens themselves
///     map  z = proj(softmax(q(latent) k(x)^T / sqrt(Dh)) v(x)),  z + mlp(norm z)
///     prr  row 0 (the mean without class token) of softmax(x x^T / sqrt(Dh)) x, per head
///
/// Prefix tokens are left out of avg, max, avgmax, map and registered pools unless pool_include_prefix.
/// `grid`: of the patch tokens; empty when some were dropped. A registered pool is layer "pool" of the blackboard.
at::Tensor vit_pool(const ViT::Config& config, const Weights& weights, const at::Tensor& x, int64_t prefix,
                    const std::vector<int64_t>& grid, Context& context, Blackboard& board);

/// fc2(drop(norm(drop(gelu(fc1 x))))) under `weights` (fc1, norm if declared, fc2); p the dropout rate in training.
at::Tensor vit_mlp(const Weights& weights, const at::Tensor& x, double p, Context& context);

}  // namespace regard
