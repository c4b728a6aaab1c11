#pragma once

#include "regard/nn/edit.h"

namespace regard {

/// P (B, H, M, N), the weights of `attention(q, k, ., spec, arguments)`: all rows of the map, with any
/// normalizer, mask and dropout; differentiable. Forms M x N: for looking at, never on the way to an output.
at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec,
                             const AttentionArguments& arguments);
at::Tensor attention_weights(const Attending& call);  ///< as the call ran: edited

/// sum_h sum_i P_hij, (B, N): what each key received, without the map.
at::Tensor attention_column_sums(const Attending& call);

}  // namespace regard
