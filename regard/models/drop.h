#pragma once

#include <ATen/ATen.h>

#include "regard/nn/context.h"

namespace regard {

/// y = x m_b / (1 - p), m_b = 0 with probability p, one draw a sample; x itself when p is 0 or the call does not train.
/// x (B, ...). Replayed from the context's seed. Stochastic depth (Huang et al., 2016).
at::Tensor drop_path(const at::Tensor& x, double p, Context& context);

/// x (B, prefix + patches, D) -> (B, prefix + K, D), K = max(1, int(patches (1 - p))): each sample keeps its prefix and
/// K random patches, in random order. Replayed from the context's seed.
at::Tensor drop_patches(const at::Tensor& x, int64_t prefix, int64_t patches, double p, Context& context);

}  // namespace regard
