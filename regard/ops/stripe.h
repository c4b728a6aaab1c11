#pragma once

#include <functional>
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

/// What a function of scores sees: scale * q k^T of the stripe's rows with a halo of rows before and after them, fewer
/// at the ends of the sequence.
struct StripeScores {
  at::Tensor scores;  ///< (B,H,m + halo,N), compute dtype
  Rows rows;          ///< the rows whose weights are asked
  int64_t first = 0;  ///< index in `scores` of the first of them
};
/// f(stripe, extra) -> weights (B,H,m,N) of the stripe's rows, then any further tensors (losses), which are summed.
using WeightFunction =
    std::function<std::vector<at::Tensor>(const StripeScores& stripe, const std::vector<at::Tensor>& extra)>;

/// o = f(scale q k^T) v stripe by stripe; returns o (B,H,M,Dv), then the sums of what else f returned (`losses` of
/// them).
std::vector<at::Tensor> stripe_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                         const WeightFunction& f, const std::vector<at::Tensor>& extra = {},
                                         int64_t before = 0, int64_t after = 0, int64_t losses = 0, int64_t block = 0);

}  // namespace regard::ops
