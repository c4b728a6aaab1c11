#pragma once

#include "regard/ops/call.h"

namespace regard::ops {

/// 0 for a dropped weight, 1 / (1 - dropout) for a kept one, (B, H, m, N): a pure function of the seed, the batch row,
/// the head and the global query and key indices, so that it is the same in every path, stripe and backward.
at::Tensor dropout_factor(const Call& call, const Rows& rows);

}  // namespace regard::ops
