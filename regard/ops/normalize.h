#pragma once

#include <ATen/ATen.h>

#include "regard/algebra/spec.h"

namespace regard::ops {

/// The weights that a normalizer gives a stripe of scores, and what its backward needs.
/// Masks are boolean and broadcast to the scores; an undefined mask is true of all pairs.
struct Normalized {
  at::Tensor weights;      ///< (B,H,m,N), 0 where not kept
  at::Tensor statistic;    ///< (B,H,m): softmax, signed softmax: log of the denominator (-inf for a row without keys);
                           ///< sum: log of the denominator; others: 0
  at::Tensor shares;       ///< softmax kinds: exp(s - statistic) over the counted pairs; sum: the sum before the floor
  at::Tensor sink_shares;  ///< (B,H,m,S)
};

/// scores (B,H,m,N); sinks (H,S) or undefined. Built of ATen ops; differentiable.
Normalized normalize(const Normalizer& normalizer, const at::Tensor& scores, const at::Tensor& keep,
                     const at::Tensor& counted, const at::Tensor& sinks);

struct NormalizedGradient {
  at::Tensor scores;  ///< (B,H,m,N), 0 where neither kept nor counted
  at::Tensor sinks;   ///< (H,S) or undefined
};

/// The vector-Jacobian product of `normalize` for gradients of weights (B,H,m,N) and statistic (B,H,m; may be
/// undefined).
NormalizedGradient normalize_backward(const Normalizer& normalizer, const Normalized& result, const at::Tensor& scores,
                                      const at::Tensor& keep, const at::Tensor& counted, const at::Tensor& grad_weights,
                                      const at::Tensor& grad_statistic);

/// t where the mask holds, `fill` elsewhere; an undefined mask holds everywhere.
at::Tensor masked(const at::Tensor& t, const at::Tensor& mask, double fill);

/// What z_score multiplies s - mean by, from the biased variance over `count` keys: 1 / sqrt(variance + epsilon), or
/// as normalizer.epsilon_place says; 0 where that would divide by 0.
at::Tensor z_score_rate(const Normalizer& normalizer, const at::Tensor& variance, const at::Tensor& count);

}  // namespace regard::ops
