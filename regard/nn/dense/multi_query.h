#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Multi-query and grouped-query attention: all query heads, or all of a group, share one key and one value head.
///
///     o_h = softmax(scale q_h k_g^T) v_g,  g = h // (H / Hk),    y = concat_h(o_h) Wo + bo
///
/// x (B, M, D), input `memory` (B, N, Dm) for cross-attention (else memory = x); y (B, M, D); any floating dtype.
/// Groups are contiguous: query heads g H/Hk .. (g + 1) H/Hk - 1 read key head g. kv_heads = 1 is multi-query
/// attention, kv_heads = heads multi-head attention. Keys and values are never expanded; a cache holds Hk heads.
///
/// Inputs that hide: `lengths`, `memory_lengths`, `key_hidden`, `hidden` (boolean, true = NOT attended). A query that
/// sees no key has o = 0; a padded token of x gives y = 0; NaN in a hidden token reaches nothing. `causal` with a
/// memory: query i sees keys j <= i + N - M (bottom_right, each row's own lengths) or j <= i (top_left).
///
/// Weights: wq.weight (H Dh, D), wk.weight (Hk Dh, Dm), wv.weight (Hk Dv, Dm), wo.weight (D, H Dv), biases on request.
/// `mean_pool_heads` (head_groups.h; regard.group_heads in Python) makes them from those of multi-head attention.
///
/// Errors: heads that are no multiple of kv_heads, widths that do not divide, inputs of other shapes, each by name.
///
/// Papers: Shazeer, 2019, Fast Transformer Decoding: One Write-Head is All You Need (arXiv 1911.02150; its listing has
/// no biases and scale 1); Ainslie et al., 2023, GQA (arXiv 2305.13245).
struct MultiQuery {
  struct Config {
    int64_t width = 0;         ///< D
    int64_t heads = 8;         ///< H
    int64_t kv_heads = 1;      ///< Hk, a divisor of H
    int64_t head_width = 0;    ///< Dh; 0: D / H
    int64_t value_width = 0;   ///< Dv; 0: Dh
    int64_t memory_width = 0;  ///< Dm; 0: D. Another than D makes memory required
    bool q_bias = false;
    bool kv_bias = false;
    bool out_bias = false;
    std::optional<double> scale;  ///< default 1 / sqrt(Dh)
    bool causal = false;
    std::string alignment = "bottom_right";
    double attn_drop = 0;  ///< of the weights, in training
    double proj_drop = 0;  ///< of y, in training
    void fields(Fields& f);
    void validate() const;

    int64_t key_width() const { return head_width ? head_width : width / heads; }
    int64_t values_width() const { return value_width ? value_width : key_width(); }
    int64_t source_width() const { return memory_width ? memory_width : width; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
