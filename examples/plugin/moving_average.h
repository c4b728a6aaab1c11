#pragma once

#include <regard/nn/mechanism.h>

/// A causal moving average with a learned decay a head, in one header and one source outside Regard.
///
///     y_i = Wo concat_h( sum_{j <= i} exp(-r_h (i - j)) x_jh / sum_{j <= i} exp(-r_h (i - j)) ),   r_h = exp(log_rate_h)
///
/// x (B, N, D), any floating dtype; y (B, N, D). It is attention whose scores look at positions alone, so it runs on
/// Regard's fused path, in O(N) memory. `lengths` (B) int64: tokens of each row; padding gives zeros.
/// Weights: log_rate (heads), out_proj.weight (D, D). Errors: width not a multiple of heads.
struct MovingAverage {
  struct Config {
    int64_t width = 0;
    int64_t heads = 1;
    void fields(regard::Fields& f);
    void validate() const;
  };
  static regard::Info info();
  static void declare(const Config& config, regard::Declaration& weights);
  static at::Tensor forward(const Config& config, const regard::Weights& weights, const at::Tensor& x,
                            regard::Context& context);
};
