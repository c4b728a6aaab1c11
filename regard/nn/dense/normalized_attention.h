#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Normalized attention pooling (NAP): scores standardized over the keys that a query sees instead of softmax, with a
/// learned gain and bias a head, in a block of its own.
///
///     z_ij = <q_i, k_j>,   w_ij = gain_h (z_ij - mean_i) / (sqrt(var_i) + epsilon) + bias_h
///     o = concat_h(sum_j w_ij v_j)
///     y = x + LN(mixing(GELU(LN(o)))),   out = y + LN(W2 GELU(LN(W1 y)))
///
/// x (B, M, D), input `memory` (B, N, D) for keys and values (else x); out (B, M, D); any floating dtype. mean and var
/// (biased) run over the visible keys; weights may be negative and need not sum to one. Scores are not scaled.
/// epsilon_place: outside, as above (TensorFlow code, 1e-3); inside, sqrt(var + epsilon) (PyTorch code, 1e-12);
/// inside_count, sqrt((n var + epsilon) / (n + epsilon)) (graph code, 1e-16). A row of one visible key has var 0, hence
/// w = bias and o = bias v: so has the first token of a causal call.
/// Variants: nap; non, w = z / sqrt(Dh), and o is divided by the square root of the number of visible keys; softmax
/// (the paper's MTE), w = softmax(z / sqrt(Dh)); sum and max, o = the sum or the maximum of the visible tokens
/// themselves: no projections, no mixing (y = x + LN(o)), and a wider feed-forward, so that parameters match.
/// bert_layer_norm: the post-norm block, y = LN(x + mixing(GELU(o))), out = LN(y + W2 GELU(W1 y)). attention_gelu =
/// false leaves the first GELU out.
/// Inputs that hide: `lengths`, `memory_lengths`, `key_hidden`, `hidden` (true = NOT attended). A query that sees no
/// key has o = 0; a padded token of x gives out = 0. max is neither causal nor packed, and takes no `hidden`.
///
/// Weights, named as in the official PyTorch code: attention.{query,key,value}.layer.*, attention.normalize.{gain,bias}
/// (1, H, 1, 1), mixing_layer.layer.*, feedforward.layer.*, feedforward2.layer.*, and gamma, beta of
/// attention_layer_norm, mixing_layer_norm, feedforward_layer_norm, feedforward2_layer_norm.
///
/// Errors: widths that do not divide, unknown variants, max with causal or hidden, each by name.
///
/// Paper: Richter and Wattenhofer, 2020, Normalized Attention Without Probability Cage (arXiv 2005.09561).
struct NormalizedAttention {
  struct Config {
    int64_t width = 0;       ///< D
    int64_t heads = 8;       ///< H
    int64_t head_width = 0;  ///< Dh; 0: D / H
    int64_t hidden = 0;      ///< feed-forward width; 0: 4 D, for sum and max round(D (12 D + 8) / (2 D + 1))
    std::string variant = "nap";
    std::optional<double> scale;  ///< default 1 for nap, 1 / sqrt(Dh) for non and softmax
    double epsilon = 1e-3;
    std::string epsilon_place = "outside";
    std::optional<double> norm_epsilon;  ///< of the LayerNorms; default epsilon
    std::string gelu = "tanh";
    bool attention_gelu = true;
    bool bert_layer_norm = false;
    bool causal = false;
    std::string alignment = "bottom_right";
    double attn_drop = 0;  ///< of the weights, in training
    void fields(Fields& f);
    void validate() const;

    int64_t key_width() const { return head_width ? head_width : width / heads; }
    bool pools() const { return variant == "sum" || variant == "max"; }
    int64_t mixed_width() const { return pools() ? width : heads * key_width(); }  ///< of o
    int64_t hidden_width() const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
