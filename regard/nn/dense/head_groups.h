#pragma once

#include <ATen/ATen.h>

namespace regard {

/// Key (or value) projection of multi-head attention to that of grouped heads: the mean over each group,
///
///     W'_g = (Hk / H) sum_{h // (H / Hk) = g} W_h,
///
/// weight (H Dh, ...), or bias (H Dh), rows head by head -> (Hk Dh, ...). Exact where the heads of a group are equal.
/// Also torch.ops.regard.mean_pool_heads. Ainslie et al., 2023, GQA (arXiv 2305.13245).
at::Tensor mean_pool_heads(const at::Tensor& weight, int64_t heads, int64_t kv_heads);

}  // namespace regard
