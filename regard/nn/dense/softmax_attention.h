#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Scaled dot-product attention with projections: the baseline of the dense family.
///
///     s_ij = scale <q_i, k_j>,  s <- c tanh(s / c),  s <- s + bias_ij - slope_h |i - j|,  o_i = sum_j p_ij v_j
///     y = norm(concat_h o) Wo + bo,    p = normalizer(s) over the keys that query i sees
///
/// x (B, M, D), input `memory` (B, N, Dm) for cross-attention (else memory = x); y (B, M, D); any floating dtype.
/// Query head h reads key head h // (heads / kv_heads). Ordinary options run on the fused path; masks and biases are
/// read where they lie, never expanded to (B, H, M, N).
///
/// Normalizers: softmax (with `sinks` learned logits a head that take weight and bring no value); softmax1, 1 added to
/// the sum; sigmoid, of s - log(N) unless sigmoid_bias is given; relu, divided by N; none, p = s. `divisor` changes
/// what relu and none divide by. N is the number of keys, the row's own where lengths are given, hidden ones included.
/// Who sees whom: causal (j <= i), window_left, window_right (i - left <= j <= i + right), where i is counted so that
/// the last query lies on the last key (alignment "bottom_right"; each row's own last, padding not counted) or the
/// first on the first ("top_left"). RoPE's default positions count x and memory from 0 each; only where i matters
/// already (causal, a window, ALiBi or `slopes`) x is turned by that same i. Inputs that hide: `hidden`, `key_hidden`
/// (boolean, true = NOT attended, as torch.nn.MultiheadAttention), `lengths`, `memory_lengths`, `segments`,
/// `memory_segments`. A query that sees no key has o = 0, hence y = bo (norm's shift before it); a padded token of x
/// gives y = 0. NaN in a hidden key reaches nothing.
///
/// Weights, named as torch.nn.MultiheadAttention's: in_proj_weight (H Dh + Hk Dh + Hk Dv, D) rows q | k | v, or
/// q_proj_weight, k_proj_weight, v_proj_weight when memory_width is not width; in_proj_bias; out_proj.weight
/// (D, H Dv), out_proj.bias; q_norm.*, k_norm.* (Dh), norm.* (H Dv) as timm's; sinks (H) or (H, S).
///
/// Errors: widths and heads that do not divide, contradictory options, inputs of other shapes, each by name.
///
/// Papers: Vaswani et al., 2017, Attention Is All You Need. Options: Shazeer, 2019, and Ainslie et al., 2023 (grouped
/// heads); Su et al., 2021 (RoPE); Press et al., 2022 (ALiBi); Xiao et al., 2023 (sinks); Miller, 2023 (softmax1);
/// Ramapuram et al., 2024 (sigmoid); Wortsman et al., 2023 (relu); Gemma Team, 2024 (soft cap).
struct SoftmaxAttention {
  struct Config {
    int64_t width = 0;         ///< D
    int64_t heads = 8;         ///< H
    int64_t kv_heads = 0;      ///< Hk, a divisor of H; 0: H
    int64_t head_width = 0;    ///< Dh; 0: D / H
    int64_t value_width = 0;   ///< Dv; 0: Dh
    int64_t memory_width = 0;  ///< Dm; 0: D. Another than D makes memory required
    bool qkv_bias = true;
    bool out_bias = true;
    bool qk_norm = false;      ///< LayerNorm over Dh on q and k, before RoPE
    bool output_norm = false;  ///< LayerNorm over H Dv before the output projection
    double norm_epsilon = 1e-6;
    std::optional<double> scale;  ///< default 1 / sqrt(Dh)
    double softcap = 0;           ///< c; 0: none
    bool alibi = false;           ///< slopes 2^(-8 (h+1) / H), or those of the input `slopes`
    bool rope = false;
    double rope_theta = 10000;
    int64_t rope_width = 0;  ///< even, at most Dh; 0: Dh
    bool rope_interleaved = false;
    bool causal = false;
    int64_t window_left = -1;  ///< -1: unbounded
    int64_t window_right = -1;
    std::string alignment = "bottom_right";
    std::string normalizer = "softmax";
    int64_t sinks = 0;  ///< S
    std::optional<double> sigmoid_bias;
    std::string divisor = "auto";  ///< one | keys | sqrt_keys | visible
    double attn_drop = 0;          ///< of the weights p, in training
    double proj_drop = 0;          ///< of y, in training
    void fields(Fields& f);
    void validate() const;

    // With the defaults of the zeros above.
    int64_t key_heads() const { return kv_heads ? kv_heads : heads; }
    int64_t key_width() const { return head_width ? head_width : width / heads; }
    int64_t values_width() const { return value_width ? value_width : key_width(); }
    int64_t source_width() const { return memory_width ? memory_width : width; }
    int64_t turned_width() const { return rope_width ? rope_width : key_width(); }
    bool separate() const { return source_width() != width; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
