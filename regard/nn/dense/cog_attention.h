#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Cog attention: softmax over the magnitudes of the scores, with the sign of each score put back on its weight, so
/// that a head may copy (positive), delete (negative) or ignore a token.
///
///     p_ij = scale <q_i, k_j>,   w_ij = sign(p_ij) exp(|p_ij|) / sum_k exp(|p_ik|),   y = concat_h(sum_j w_ij v_j) Wo
///
/// x (B, M, D), input `memory` (B, N, D) for cross-attention (else memory = x); y (B, M, D); any floating dtype.
/// sum_j |w_ij| = 1 but for scores of exactly 0: they count exp(0) in the sum and bring nothing. The sign is a constant
/// for derivatives; at p = 0 the weight jumps. No additive bias: the paper defines none.
/// With epsilon > 0 (the authors' analysis code, 1e-6): w_ij = sign(p_ij) e_ij / (sum_k e_ik + epsilon),
/// e_ij = exp(|p_ij| - max |p_i|), scores of exactly 0 left out of the sum.
/// attention = "softmax" is the plain layer that the paper keeps as the first and the last of a stack, on the same
/// weights.
///
/// Forms: "lm", projections x @ W without biases, and q, k turned by RoPE over interleaved pairs (rope_theta, or the
/// tables freqs_cos, freqs_sin); "image" (U-ViC), one qkv projection and a biased proj, no RoPE unless asked.
/// Inputs that hide: `hidden` (true = NOT attended, the contrary of the official mask), `key_hidden`, `lengths`,
/// `memory_lengths`. A query that sees no key has o = 0; a padded token of x gives y = 0. `causal` with a memory: query
/// i sees keys j <= i + N - M (bottom_right, each row's own lengths) or j <= i (top_left). A cache holds keys after
/// their rotation.
///
/// Weights: lm qw, kw, vw (D, H Dh), ow (H Dh, D); image qkv.weight (3 H Dh, D), rows q | k | v head by head,
/// qkv.bias on request, proj.weight (D, H Dh), proj.bias (D).
///
/// Errors: widths that do not divide, an odd head width with RoPE, tables or positions without it.
///
/// Paper: Lv et al., 2024, More Expressive Attention with Negative Weights (arXiv 2411.07176).
struct CogAttention {
  struct Config {
    int64_t width = 0;       ///< D
    int64_t heads = 8;       ///< H
    int64_t head_width = 0;  ///< Dh; 0: D / H
    std::string form = "lm";
    std::string attention = "cog";
    bool qkv_bias = false;        ///< image
    std::optional<double> scale;  ///< default 1 / sqrt(Dh)
    double epsilon = 0;
    std::optional<bool> rope;  ///< default: in the form "lm"
    double rope_theta = 10000;
    bool causal = false;
    std::string alignment = "bottom_right";
    double attn_drop = 0;  ///< of the weights, in training
    double proj_drop = 0;  ///< of y, in training
    void fields(Fields& f);
    void validate() const;

    int64_t key_width() const { return head_width ? head_width : width / heads; }
    bool turns() const { return rope.value_or(form == "lm"); }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
