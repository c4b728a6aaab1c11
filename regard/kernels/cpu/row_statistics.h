#pragma once

#include <vector>

#include "regard/kernels/cpu/plan.h"

namespace regard::kernels {

/// What the state of every row was at the end of the forward pass and (o, lse) do not tell, contiguous (B, H, M);
/// see RowState. Empty where the normalizer needs none of it.
template <class T>
struct RowStatistics {
  std::vector<T> sum;               ///< sum with a floor (+inf where lse says that it was above), kept divisors, z_score
  std::vector<T> mean;              ///< z_score
  std::vector<T> square, residual;  ///< z_score
  /// z_score: sums of weight <grad_o, v_j> over the kept pairs, times the scale of plain scores, and of that times
  /// s - mean. From the same dP as the backward's, so that their rounding cancels: taken from o it would not.
  std::vector<T> slopes, centered;
};

/// Found by a pass over the pairs like the forward's, without its output.
template <class T>
RowStatistics<T> row_statistics(const Plan<T>& plan, const AttentionGradient<T>& gradient);

}  // namespace regard::kernels
