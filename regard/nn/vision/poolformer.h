#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// PoolFormer's token mixer: the mean of the neighbors that lie on the grid, minus the token itself.
///
///     y_i = (1 / |W_i|) sum_{j in W_i} x_j - x_i,    W_i = the window of pool_size around i, cut at the border
///
/// x (B, N, D) with N = product(grid), a grid of 1, 2 or 3 dimensions (context.grid); y (B, N, D); any floating dtype.
/// No weights. Linear; a constant map gives zeros, at the border too.
/// `lengths` (B) int64: tokens behind it, row by row, do not exist: they enter no mean and give zeros.
/// Prefix tokens (class, registers) have no place on the grid and are refused.
///
/// `causal` (one-dimensional grids; not in the paper) looks to the left only: W_i = {i - pool_size + 1, ..., i}.
///
/// Errors: width <= 0; pool_size <= 0, or even without causal (an even window has no center); no grid, a grid of more
/// than 3 dimensions or of another product than N; causal on a grid of more than one dimension.
///
/// Paper: Yu et al., CVPR 2022, MetaFormer Is Actually What You Need for Vision (arXiv 2111.11418).
struct PoolFormer {
  struct Config {
    int64_t width = 0;      ///< D
    int64_t pool_size = 3;  ///< window along every dimension of the grid
    bool causal = false;
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
