#pragma once

#include <functional>
#include <vector>

#include "regard/ops/attention.h"
#include "regard/ops/call.h"

namespace regard::ops {

/// A change of the normalized weights of an attention, stripe by stripe of query rows.
struct WeightEdit {
  /// weights (B, H, m, N) -> the same shape; `rows` says which queries they are of. Pure: it may run twice. Gradients
  /// reach the weights and `tensors`, which are handed in again: nothing else that needs a gradient may be read.
  std::function<at::Tensor(const at::Tensor& weights, const Rows& rows, const std::vector<at::Tensor>& tensors)> change;
  std::vector<at::Tensor> tensors;
};

/// o_i = sum_j edit(P)_ij v_j, P the weights of `attention`, the edits applied in their order: in stripes, O(M + N)
/// memory, recomputed in the backward. lse is that of the attention before the edits; pair outputs are sums over the
/// edited weights.
AttentionOutput attention_edited(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const AttentionSpec& spec, const AttentionArguments& arguments,
                                 const std::vector<WeightEdit>& edits);

/// The tensors of all edits, one after another, and the edits applied with such a list. Throws for another shape.
std::vector<at::Tensor> tensors_of(const std::vector<WeightEdit>& edits);
at::Tensor edited(at::Tensor weights, const Rows& rows, const std::vector<WeightEdit>& edits,
                  const std::vector<at::Tensor>& tensors);

/// Throws when an edit reads a tensor that needs a gradient and is not among its `tensors`: its gradient would be lost.
void check_edits(const Call& call, const std::vector<WeightEdit>& edits);

}  // namespace regard::ops
