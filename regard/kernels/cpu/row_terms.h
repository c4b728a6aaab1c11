#pragma once

#include <vector>

#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/row_statistics.h"

namespace regard::kernels {

/// What the backward needs of every row, contiguous (B, H, M).
template <class T>
struct RowTerms {
  std::vector<T> lse;    ///< of the forward; +inf for a row without keys, so that exp(s - lse) is 0 there
  std::vector<T> delta;  ///< rowsum(grad_o o) - grad_lse; z_score: the mean slope, scaled as in RowStatistics
  // Other normalizers: what normalizers.inl says that they read; empty for softmax.
  std::vector<T> rate;
  std::vector<T> slope;
};

template <class T>
RowTerms<T> row_terms(const Attention<T>& call, const AttentionGradient<T>& gradient,
                      const RowStatistics<T>& statistics);

/// d sink_hs = sum over b, i of exp(sink_hs - lse_i) (grad_lse_i - delta_i), delta without grad_lse.
template <class T>
void sink_gradients(const Attention<T>& call, const RowTerms<T>& rows, T* gradient);

}  // namespace regard::kernels
