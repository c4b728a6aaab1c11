#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "regard/ops/attention.h"
#include "regard/ops/call.h"

namespace regard {

/// What one call of attention is about to compute.
struct Attending {
  at::Tensor q, k, v;
  AttentionSpec spec;
  AttentionArguments arguments;  ///< captures by name
};

/// A change of an attention inside a mechanism, without touching the mechanism: for interventions and ablations.
struct Edit {
  int64_t attention = -1;   ///< which of the mechanism's attentions, in the order in which they run; -1: every one
  /// Changes the spec, its captures or the operands before the call. Empty: nothing.
  std::function<void(Attending&)> before;
  /// Replaces the normalized weights (B, H, m, N) of a stripe of query rows. Empty: nothing. Runs on the stripe path.
  std::function<at::Tensor(const at::Tensor& weights, const ops::Rows& rows)> after;
};

}  // namespace regard
