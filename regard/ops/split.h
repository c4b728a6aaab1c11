#pragma once

#include "regard/ops/executor.h"

namespace regard {

/// attention(q, k, v) with the keys in `parts` parts, each absorbed into a state, merged in their order; more parts
/// than keys leave some empty. Positions stay those of the whole, captures are read where the whole reads them.
AttentionOutput attention_in_parts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const AttentionSpec& spec, const AttentionArguments& arguments, int64_t parts);

/// linear_attention(q, k, v) part by part: each continues from the state that the one before left.
LinearOutput linear_attention_in_parts(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const LinearArguments& arguments, int64_t parts);

/// The arguments of the keys [begin, end) of a call, without its initial state.
LinearArguments linear_part(const LinearArguments& arguments, const c10::SymInt& begin, const c10::SymInt& end);

}  // namespace regard
