#pragma once

#include "regard/ops/call.h"

namespace regard::ops {

/// 0 for a dropped weight, 1 / (1 - dropout) for a kept one, (B, H, m, N): a pure function of the seed, the batch row
/// (the segment of a packed call), the head and the positions query() and key(), so that it is the same in every path,
/// stripe and backward, however the keys are split, packed or sharded.
at::Tensor dropout_factor(const Call& call, const Rows& rows);

}  // namespace regard::ops
