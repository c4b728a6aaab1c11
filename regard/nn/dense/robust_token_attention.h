#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Token-aware average pooling (TAP) in front of attention, and a loss that keeps its rows apart (ADL): attention that
/// does not rest on single tokens.
///
///     X = x on the grid,   g = softmax_K(conv(BN(conv(X))) / temperature)          3 x 3 each, zero padding
///     S_0 = X,   S_d = mean of the 9 entries at offsets {-d, 0, d}^2, zeros outside counted,   d = 1 .. K - 1
///     pooled = sum_d g_d S_d
///     host rvt:   h = x + gamma1 Wo attention(norm1(pooled)),   y = h + gamma2 mlp(norm2(h))
///     host none:  y = Wo attention(pooled)
///
/// x (B, P + Hg Wg, D) on the grid (Hg, Wg) of the context, (Wg) being one row; y likewise. attention: softmax over all
/// tokens, scale (D / heads)^-1/2. mlp (RVT's, on the grid): gelu(bn1(fc1 z)), gelu(bn2(dwconv z)), bn3(fc2 z). gamma
/// are 1 unless layer_scale is given. Prefix tokens pass by the pooling and the mlp (both convolutions). K = 1: pooled
/// = x.
///
/// Loss adl: adl_weight / (layers + 1e-6) times the mean over batch and queries of cos(a'_i, s'), a the mean of the
/// weights over heads, s its mean over queries, a' = a where a > threshold / N, else 0. Over `layers` layers the losses
/// sum to the paper's. Computed in stripes: the map is never stored. Weights before dropout; `parity`: after it, as the
/// official code. See robust_token_attention_loss.h for lists of layers and for maps.
///
/// BatchNorm: given statistics in evaluation; in training those of the batch (which couples its samples), and the
/// outputs "buffer.NAME" are the updated running_mean and running_var, momentum 0.1, unbiased variance.
/// Outputs: tap_weights (B, 1, Hg, Wg, K), pooled (B, P + N, D), attn (B, H, M, M), similarity (mean cosine).
///
/// Weights, named as the official ones: dilation_predictor.proj.{0,1,2}, norm1, attn.qkv, attn.proj, norm2, mlp.{fc1,
/// bn1, dwconv, bn2, fc2, bn3}; gamma1, gamma2 (D). Errors: a grid of more than two dimensions, options out
/// of range; lengths, packed sequences, caches and shards are refused (a convolution over the grid).
///
/// Paper: Guo, Stutz and Schiele, ICCV 2023, Robustifying Token Attention for Vision Transformers (arXiv 2303.11126).
struct RobustTokenAttention {
  struct Config {
    int64_t width = 0;       ///< D
    int64_t heads = 8;       ///< H
    int64_t num_scales = 4;  ///< K
    double temperature = 1;
    double threshold = 2;  ///< of the loss, in units of 1 / N
    double adl_weight = 1;
    int64_t layers = 1;        ///< whose losses are summed
    std::string host = "rvt";  ///< rvt | none
    bool qkv_bias = true;
    double mlp_ratio = 4;
    std::optional<double> layer_scale;  ///< start of gamma1, gamma2; none: no such weights
    double norm_epsilon = 1e-6;
    double bn_epsilon = 1e-5;
    double bn_momentum = 0.1;
    double attn_drop = 0;  ///< of the weights, in training
    double proj_drop = 0;  ///< of the attention's output, in training
    bool parity = false;   ///< the loss of the weights after dropout
    void fields(Fields& f);
    void validate() const;
    int64_t hidden() const { return static_cast<int64_t>(static_cast<double>(width) * mlp_ratio); }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
