#pragma once

#include <optional>

#include "regard/kernels/cpu/plan.h"

/// Short queries of grouped heads as one longer query.
namespace regard::kernels {

/// Where every pair is kept (of any block or sequence) and scores are plain, the heads of a group differ in their queries alone: (B, H, M) rows
/// are (B, Hk, H / Hk * M) rows, and vector lanes that M < kLanes would leave empty are filled. None where rows do not
/// lie at one stride, or where there is nothing to gain.
template <class T>
std::optional<Attention<T>> folded(const Plan<T>& plan);

/// The same of the gradients; none where the rows of o and grad_o do not lie at one stride.
template <class T>
std::optional<AttentionGradient<T>> folded(const Attention<T>& call, const AttentionGradient<T>& gradient);

}  // namespace regard::kernels
