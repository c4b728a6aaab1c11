#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Mixture-of-head attention: attention whose heads each token weighs before the output projection.
///
///     y_t = sum_e g_te o_te Wo_e,   o_te = sum_j softmax_j(<q_te, k_je> / sqrt(Dh)) v_je
///     p = softmax(wg x) over the R = H - S routed heads, r = K p m / max(sum p m, eps), m marks the K largest p
///     c = S softmax(wg_1 x) over the S shared heads (1 when S is 1), a = 2 softmax(wg_0 x)
///     g = concat(a_0 c, a_1 r); r alone when S is 0; c alone when K is 0
///
/// x (B, N, D) -> y (B, N, D); any floating type. The router reads x, also with `memory` (B, M, D) for keys and values.
/// Router `query_norm`, for continued training of a language model: m marks the K routed heads with the longest queries
/// (before rotary), g = 1 for shared heads and m for routed ones, without weights and without gradient.
/// `cosine`: scores ((q / |q| + query_embedding) softplus(temperature) log(keys)) . k / |k|, which with the input
/// `bias` is the global attention of TransNeXt's backbone. Its windowed attention, a 3 x 3 window and pooled keys in
/// one softmax, is another mechanism.
///
/// Loss `balance`: R^2 mean_e(mean_t p_te mean_t m_te), the second mean a constant; 1/R and K/R everywhere give K.
/// Padding does not count in it.
/// Execution `gathered` computes routed heads for the tokens that chose them alone, `dense` all of them: equal to
/// rounding. Gathering is for whole sequences of a known length (a traced program of it serves that length only),
/// without cache, shards, dropout or maps.
///
/// Weights: qkv.weight ((H + 2 Hk) Dh, D), qkv.bias, proj; or with `separate` q_proj, k_proj, v_proj, o_proj; q_norm.*,
/// k_norm.* (Dh); wg.weight (R, D), wg_0.weight (2, D), wg_1.weight (S, D); temperature (H, 1, 1), query_embedding
/// (H, 1, Dh).
///
/// Errors: widths and heads that do not divide, shared_heads and routed_heads out of range, cosine with causal, memory
/// with causal or rope, by name.
///
/// Paper: Jin et al., 2024, MoH: Multi-Head Attention as Mixture-of-Head Attention (arXiv 2410.11842).
struct MixtureOfHead {
  struct Config {
    int64_t width = 0;                ///< D
    int64_t heads = 8;                ///< H
    int64_t kv_heads = 0;             ///< Hk, a divisor of H; 0: H
    int64_t head_width = 0;           ///< Dh; 0: D / H
    int64_t shared_heads = 0;         ///< S
    int64_t routed_heads = 0;         ///< K, active ones among the H - S
    std::string router = "learned";   ///< learned | query_norm
    std::string execution = "dense";  ///< dense | gathered
    bool separate = false;
    bool qkv_bias = false;
    bool out_bias = true;
    bool qk_norm = false;
    double norm_epsilon = 1e-5;
    bool cosine = false;
    bool rope = false;
    double rope_theta = 10000;
    bool rope_interleaved = false;
    bool causal = false;
    double attn_drop = 0, proj_drop = 0;
    void fields(Fields& f);
    void validate() const;

    // With the defaults of the zeros above.
    int64_t key_heads() const { return kv_heads ? kv_heads : heads; }
    int64_t key_width() const { return head_width ? head_width : width / heads; }
    int64_t choices() const { return heads - shared_heads; }  ///< R
    bool learned() const { return router == "learned"; }
    bool gathered() const { return execution == "gathered" && routed_heads > 0; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
