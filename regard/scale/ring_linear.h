#pragma once

#include "regard/ops/linear_attention.h"
#include "regard/scale/collectives.h"

namespace regard::sharding {

/// regard::linear_attention over the tokens of all ranks, contiguous layout: every rank summarizes its span, summaries
/// (span_bytes each) are gathered and merged in order, and each rank continues from the state before its first token.
/// State and z are those after the last token of all, the same on every rank.
LinearOutput ring_linear(const Collectives& group, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const LinearArguments& arguments);

}  // namespace regard::sharding
