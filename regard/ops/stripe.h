#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "regard/ops/call.h"

/// The stripe executor: whatever looks at more than one pair at a time (a convolution over scores, heads that talk,
/// cumulative sums over keys, a sort) sees the scores of one block of query rows against all keys. One stripe is alive
/// at a time and is recomputed in the backward, so memory stays O(M + N); any dtype and device, differentiable to any
/// order.
namespace regard::ops {

/// How the pieces that stripes return become one tensor.
struct Combine {
  int64_t dim = -1;  ///< >= 0: concatenated along this dimension; -1: summed
  static Combine concatenate(int64_t dim) { return {dim}; }
  static Combine sum() { return {-1}; }
};

/// One stripe: rows and the tensors it reads, whose gradients come from all stripes. Pure: it may run twice.
using StripeFunction = std::function<std::vector<at::Tensor>(const Rows& rows, const std::vector<at::Tensor>& inputs)>;

/// Runs f over [0, M) in stripes of at most `block` rows and combines its outputs. `block` < 1: one stripe of all rows.
std::vector<at::Tensor> run_stripes(const c10::SymInt& M, int64_t block, const std::vector<at::Tensor>& inputs,
                                    const StripeFunction& f, const std::vector<Combine>& combine);

/// Rows a stripe so that one (B, H, rows, N) tensor has about four million entries; 0 (one stripe) when sizes are
/// symbolic.
int64_t stripe_rows(const Call& call);

/// How a function of scores is cut into stripes.
struct StripeOptions {
  int64_t before = 0, after = 0;  ///< halo: rows of scores that a stripe's function reads before and after its own
  int64_t losses = 0;             ///< scalars that the function returns beside the weights
  int64_t block = 0;              ///< rows a stripe; 0: chosen by size (`stripe_rows`)
  c10::SymInt skipped = 0;        ///< the first rows of q serve as halo alone: o has M - skipped rows
  /// Row i sees no key after i + *causal: a stripe's scores end with the last key that one of its rows sees, which
  /// halves the work. The function still masks within them. Unset: all keys.
  std::optional<c10::SymInt> causal = std::nullopt;
};

/// What a function of scores sees: scale * q k^T of the stripe's rows with a halo of rows before and after them, fewer
/// at the ends of q.
struct StripeScores {
  at::Tensor scores;  ///< (B,H,m + halo,n), compute dtype; the first n of N keys
  Rows rows;          ///< the rows of q whose weights are asked
  c10::SymInt first;  ///< index in `scores` of the first of them
  c10::SymInt N;      ///< keys of the call
};
/// f(stripe, extra) -> weights (B,H,m,n) of the stripe's rows, then any further tensors (losses), which are summed.
using WeightFunction =
    std::function<std::vector<at::Tensor>(const StripeScores& stripe, const std::vector<at::Tensor>& extra)>;

/// o = f(scale q k^T) v stripe by stripe; returns o (B,H,M,Dv), then the sums of what else f returned. A NaN in v
/// reaches no row whose weight for it is 0.
std::vector<at::Tensor> stripe_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                         const WeightFunction& f, const std::vector<at::Tensor>& extra = {},
                                         const StripeOptions& options = {});

/// f(stripe, values) -> o (B,H,m,Dv) of the stripe's rows, values (B,H,n,Dv) those of the stripe's keys: for mechanisms
/// that do more with v than weigh it.
using OutputFunction = std::function<at::Tensor(const StripeScores& stripe, const at::Tensor& values)>;

/// o = f(scale q k^T, v) stripe by stripe, (B,H,M,Dv).
at::Tensor stripe_output(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                         const OutputFunction& f, const StripeOptions& options = {});

/// The weights f(scale q k^T) themselves, (B,H,M,N): for looking at.
at::Tensor stripe_weights(const at::Tensor& q, const at::Tensor& k, double scale, const WeightFunction& f,
                          const std::vector<at::Tensor>& extra = {}, const StripeOptions& options = {});

}  // namespace regard::ops
