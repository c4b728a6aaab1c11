#pragma once

#include <ATen/ATen.h>

#include <functional>

#include "regard/ops/call.h"

/// The two-level softmax of landmark attention over a stripe of query rows, in ATen operations: differentiable to any
/// order. B and H axes as everywhere; m rows, n keys.
namespace regard::ops {

/// Which key is what to which row. The section of a key is the number of landmarks before it; a row's own section is
/// `current`, the largest among the keys it sees.
struct LandmarkKeys {
  at::Tensor is_mem;   ///< (B or 1, n) bool: landmarks
  at::Tensor section;  ///< (B or 1, n) int64
  at::Tensor current;  ///< (B or 1, m) int64
  at::Tensor allowed;  ///< bool, broadcasts to (B, 1, m, n): pairs that exist
};

/// The section of each key, (.., n) int64: landmarks strictly before it.
at::Tensor landmark_sections(const at::Tensor& is_mem);

/// Multiplies the probabilities of past blocks (.., G), one a section; empty: nothing.
using GroupFactor = std::function<at::Tensor(const at::Tensor& probabilities)>;

/// Weights (B, H, m, n) from logits of the same shape. With G* = the landmarks of past sections and the ordinary keys
/// of the current one, and b(s) the block of a past ordinary key s,
///     w_s = softmax_{G*}(s)                              s of the current section
///     w_s = softmax_{b(s)}(s) softmax_{G*}(landmark of b(s))       s of a past one
/// and 0 for landmarks. Rows sum to 1 unless a past landmark closes an empty block, whose share is lost.
at::Tensor landmark_softmax(const at::Tensor& logits, const LandmarkKeys& keys, const GroupFactor& factor = {});

/// The output of the same attention for landmarks at the end of blocks of `block` keys: inner states u = softmax(block)
/// v are finished first, then absorbed as one key of value u and logit the landmark's. `rows` (m) int64 are the
/// queries' positions among the keys, which start at 0; a row sees no later key. v (B, H, n, Dv); o (B, H, m, Dv).
at::Tensor landmark_blocks(const at::Tensor& logits, const at::Tensor& v, int64_t block, const at::Tensor& rows,
                           const GroupFactor& factor = {});

}  // namespace regard::ops
