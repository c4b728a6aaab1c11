#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "regard/ops/attention.h"
#include "regard/ops/edited.h"

namespace regard {

/// What one call of attention is about to compute.
struct Attending {
  at::Tensor q, k, v;
  AttentionSpec spec;
  AttentionArguments arguments;        ///< captures by name
  std::vector<ops::WeightEdit> after;  ///< changes of the normalized weights, in their order
};

/// A change of an attention inside a mechanism, without touching the mechanism: for interventions and ablations.
/// `before` of all edits runs first, in their order, then the attention, then `after` of all of them.
struct Edit {
  int64_t attention = -1;  ///< which of the mechanism's attentions, in the order in which they run; -1: every one
  std::string layer;       ///< of a host: the layers of this name ("blocks.3.attn"), '*' stands for any text; "": all
  /// Changes the spec, its captures or the operands before the call. Empty: nothing.
  std::function<void(Attending&)> before;
  /// Replaces the normalized weights (B, H, m, N) of a stripe of query rows. Empty: nothing. Runs on the stripe path.
  ops::WeightEdit after;
  /// Counts the attentions that it reached in one call: one that reaches none is an error.
  std::shared_ptr<int64_t> reached;
};

}  // namespace regard
