#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// SimPool: one cross-attention step from the mean of the tokens to the tokens, under a power mean.
///
///     u = mean_n x_n,   z_n = LayerNorm(x_n),   a = softmax_n(scale <Wq u, Wk z_n>)        per head
///     y = sum_n a_n z_n                                                                    gamma none
///     y = (sum_n a_n (z_n - m + 1e-6)^gamma)^(1/gamma) + beta,   m = min of z              gamma given
///
/// x (B, N, D) or a map (B, D, H, W); y (B, D), the heads concatenated. Half types compute in float32.
/// Values are the normalized tokens themselves: no value and no output projection. m is not added back.
/// Output `attn` (B, heads, 1, N): the attention, a saliency map over the pooled tokens.
///
/// The minimum is taken over each sample (all its tokens and channels). `parity` takes it over the whole batch, as the
/// official code does: a sample's result then depends on its batch-mates. It also admits use_beta without gamma, as the
/// official checkpoints have it: beta is a weight that nothing reads.
/// `lengths` (B): padding is dropped from the mean, the minimum and the softmax. Prefix tokens (class, registers) are
/// left out unless `include_prefix`. ViTs use gamma 1.25 with use_beta, convolutional nets gamma 2.
///
/// Weights, named as the official ones: norm_patches.weight, norm_patches.bias (D); wq.weight, wk.weight (D, D);
/// wq.bias, wk.bias (D) with qkv_bias; beta (1) with use_beta.
/// Errors: width <= 0, width not a multiple of heads, gamma <= 0, use_beta without gamma (but for parity), no tokens.
///
/// Paper: Psomas et al., ICCV 2023, Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?
/// (arXiv 2309.06891).
struct SimPool {
  struct Config {
    int64_t width = 0;               ///< D
    int64_t heads = 1;
    bool qkv_bias = false;           ///< biases on wq and wk
    std::optional<double> qk_scale;  ///< default (D / heads)^-1/2
    std::optional<double> gamma;     ///< exponent of the power mean; none: an ordinary mean
    bool use_beta = false;           ///< a learned scalar added to y (with gamma)
    bool parity = false;             ///< the minimum over the batch, as the official code
    bool include_prefix = false;
    double norm_epsilon = 1e-6;
    void fields(Fields& f);
    void validate() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
