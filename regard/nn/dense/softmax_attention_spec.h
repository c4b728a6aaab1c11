#pragma once

#include "regard/nn/context.h"
#include "regard/nn/dense/softmax_attention.h"
#include "regard/ops/attention.h"

namespace regard {

/// Which tokens a call of softmax-attention has, (B) int64 and (B, N) boolean; undefined when absent.
struct Visibility {
  at::Tensor lengths;      ///< of the queries' tokens
  at::Tensor key_lengths;  ///< of the keys' tokens
  at::Tensor key_hidden;   ///< true = NOT attended
};

/// The spec of one call and the tensors it captures: score, keep and normalizer of SoftmaxAttention, nothing dense.
struct PreparedAttention {
  AttentionSpec spec;
  AttentionArguments arguments;
  at::Tensor query_positions;  ///< (B, M) int64 where rows differ in them; undefined: i + arguments.query_offset
};
PreparedAttention prepare(const SoftmaxAttention::Config& config, const Weights& weights, const Context& context,
                          const Visibility& visibility, const at::Tensor& q, const at::Tensor& k);

}  // namespace regard
