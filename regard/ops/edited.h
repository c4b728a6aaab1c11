#pragma once

#include <functional>

#include "regard/ops/attention.h"
#include "regard/ops/call.h"

namespace regard::ops {

/// Replaces the normalized weights (B, H, m, N) of a stripe of query rows.
using WeightEdit = std::function<at::Tensor(const at::Tensor& weights, const Rows& rows)>;

/// o_i = sum_j edit(P)_ij v_j, P the weights of `attention`: in stripes, O(M + N) memory, recomputed in the backward.
/// lse is that of the attention before the edit; pair outputs are sums over the edited weights.
AttentionOutput attention_edited(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const AttentionSpec& spec, const AttentionArguments& arguments,
                                 const WeightEdit& edit);

}  // namespace regard::ops
