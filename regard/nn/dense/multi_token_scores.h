#pragma once

#include "regard/nn/dense/multi_token_attention.h"
#include "regard/nn/edit.h"
#include "regard/ops/stripe.h"

namespace regard {

/// What multi-token attention makes of a stripe of scores: filters, mixers and softmax, and which pairs exist. The
/// tensors are handles; the function it gives owns what it needs.
class MultiTokenScores {
 public:
  MultiTokenScores(const MultiTokenAttention::Config& config, const Weights& weights);

  at::Tensor segments;      ///< (T) int64 of packed tokens, or undefined
  at::Tensor key_lengths;   ///< (B) int64 or undefined
  at::Tensor hidden;        ///< bool, broadcast to (B, H, M, N), or undefined
  at::Tensor seed;          ///< of the dropout; undefined: none
  c10::SymInt offset = 0;   ///< row i of q is query i + offset
  c10::SymInt skipped = 0;  ///< rows of q that earlier steps left

  void check_hidden(const at::Tensor& q, const at::Tensor& k, bool decoding) const;
  /// Edits of the weights run after the mixers; edits of a spec have nothing to change here and are refused.
  void add(const Edit& edit);

  std::vector<at::Tensor> tensors() const;  ///< kernels, mixers and what edits read: those with a gradient
  ops::WeightFunction function() const;

 private:
  at::Tensor hidden_pairs(const ops::StripeScores& stripe, const c10::SymInt& missing) const;
  at::Tensor filtered(const at::Tensor& map, const at::Tensor& kernel, const ops::StripeScores& stripe) const;
  at::Tensor weights(const ops::StripeScores& stripe, const std::vector<at::Tensor>& extra) const;
  at::Tensor dropped(const at::Tensor& map, const ops::StripeScores& stripe) const;

  MultiTokenAttention::Config config_;
  at::Tensor kernel_, kernel_after_, mixer_, head_kernel_, mixer_after_;
  std::vector<ops::WeightEdit> edits_;
};

}  // namespace regard
