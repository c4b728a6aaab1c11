#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Gated attention: a gate computed from the token that owns a tensor multiplies it (or is added to it).
///
///     Y' = Y * act(x Wg)    or additive    Y' = Y + act(x Wg),    Y at one of five positions:
///     y = G5(concat_h(G1(softmax(rope(norm(G4(q))) rope(norm(G3(k)))^T / sqrt(Dh)) G2(v))) Wo)
///
/// x (B, M, D), already normed, input `memory` (B, N, D) for cross-attention (else memory = x); y (B, M, D); any
/// floating dtype. G1, G4, G5 are gated by the query's token, G2 and G3 by the value's and the key's, before norm and
/// RoPE; a cache holds gated keys and values. Query head h reads key head h // (heads / kv_heads).
/// Granularity: `headwise`, one scalar a head and token, or `elementwise`, one a channel; both set: head-wise, as in
/// the official code; neither: no gate. `shared`: one gate for all heads. G5 has no heads: elementwise, D wide.
/// Activations: sigmoid; silu; ns_sigmoid = (1 + sigmoid) / 2, never sparse; auto: sigmoid, or silu when additive.
/// `input_independent`: act of a learned tensor, zero at first, instead of x Wg.
/// qk_norm is RMSNorm over Dh; RoPE turns pairs (t, t + Dh/2) by rope_theta or by the tables cos, sin.
/// Inputs that hide: `lengths`, `memory_lengths`, `key_hidden`, `hidden` (true = NOT attended). A query that sees no
/// key has o = 0; a padded token of x gives y = 0. `causal` with a memory: query i sees keys j <= i + N - M
/// (bottom_right, each row's own lengths) or j <= i (top_left).
///
/// Weights, named as in Qwen's code: k_proj, v_proj (Hk Dh, D), o_proj (D, H Dh), q_norm.weight, k_norm.weight (Dh),
/// biases of the four projections with qkv_bias. q_proj: with a gate at G1 that is neither shared nor input independent
/// it carries the gate's rows, key head by key head: first its H/Hk Dh query rows, then its H/Hk (head-wise) or H/Hk Dh
/// gate rows; else (H Dh, D), and the gate is gate_proj (heads x channels, D), or `gate` (heads, channels).
///
/// Errors: heads and widths that do not divide, gate options without a gate, G5 head-wise or shared, an odd head width
/// with RoPE, tables or positions without it.
///
/// Paper: Qiu et al., NeurIPS 2025, Gated Attention for Large Language Models (arXiv 2505.06708).
struct GatedAttention {
  struct Config {
    int64_t width = 0;       ///< D
    int64_t heads = 8;       ///< H
    int64_t kv_heads = 0;    ///< Hk, a divisor of H; 0: H
    int64_t head_width = 0;  ///< Dh; 0: D / H
    bool headwise = false;
    bool elementwise = true;
    std::string position = "G1";
    bool shared = false;
    bool additive = false;
    std::string activation = "auto";
    bool input_independent = false;
    bool qk_norm = true;
    double norm_epsilon = 1e-6;
    bool qkv_bias = false;  ///< of q, k, v and o
    bool rope = true;
    double rope_theta = 10000;
    bool causal = false;
    std::string alignment = "bottom_right";
    double attn_drop = 0;  ///< of the weights, in training
    void fields(Fields& f);
    void validate() const;

    int64_t key_heads() const { return kv_heads ? kv_heads : heads; }
    int64_t key_width() const { return head_width ? head_width : width / heads; }
    bool gates(const char* at) const { return (headwise || elementwise) && position == at; }
    bool merged() const { return gates("G1") && !shared && !input_independent; }  ///< the gate's rows lie in q_proj
    int64_t gate_heads() const;                                                   ///< of Y, 1 when shared
    int64_t gate_channels() const;                                                ///< 1, Dh, or D at G5
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
