#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Multi-token attention: score maps filtered by small kernels over (past queries) x (neighboring keys), before and
/// after the softmax, and heads that are mixed there, so that a weight may depend on several tokens and heads.
///
///     S = scale q k^T,  S' = K * S,  S'' = W S',  P = softmax(S''),  A = K2 * P,  A' = A mixed over heads,  o = A' v
///     y = concat_h(gate(norm(o_h))) Wo,   (K * S)_ij = sum_ab K_ab S_{i - (cq-1) + a, j + b - c0}
///     norm: RMSNorm over Dh,  gate(o) = o sigmoid(Wg o + bg)
///
/// x (B, M, D), input `memory` (B, N, D) for cross-attention (not causal; else memory = x); y (B, M, D). Float32 inside
/// for half types. Query head h reads key head h // (heads / kv_heads).
/// Hidden pairs (later keys when causal, padding, other segments, `hidden`) count as 0 in the filters and have no
/// weight; c0 is (ck - 1) / 2 for pad_key "both" (ck odd), ck - 1 for "left", 0 for "right". Rows do not sum to 1 after
/// K2. Packed sequences are cut where segments begin. A query without keys has o = 0; a padded token gives y = 0.
///
/// Runs in stripes of query rows with a halo of cq + cq2 - 2 rows (O(M + N) memory, recomputed in the backward), on
/// `path` composite as one stripe. Decoding keeps k, v and the last cq + cq2 - 2 queries. The defaults are the paper's
/// layer with kernels; its other layers have the four kernel sizes null. The official block's option curse_norm scales
/// norms outside the attention.
///
/// Weights, named as the official ones: wq.weight (H Dh, D), wk.weight, wv.weight (Hk Dh, D), wo.weight (D, H Dh);
/// mta_kernel (H, 1, cq, ck); mta_kernel_after_sm (H, 1, cq2, ck2); wpsm.weight (H, H): W above; post-softmax either
/// head_kernel (H / c, c, c), A'_e = sum_d A_d head_kernel[d, e] in groups of c heads, or wposm.weight (H, H),
/// A'_e = sum_d wposm[e, d] A_d; subln.weight (Dh); gate.weight (1, Dh) or (Dh, Dh), gate.bias.
///
/// Errors: heads and kernel sizes that do not divide or pair, an even ck with "both", contradictory mixers, by name.
///
/// Paper: Golovneva, Wang, Weston, Sukhbaatar, 2025, Multi-Token Attention (arXiv 2504.00927).
struct MultiTokenAttention {
  struct Config {
    int64_t width = 0;            ///< D
    int64_t heads = 8;            ///< H
    int64_t kv_heads = 0;         ///< Hk, a divisor of H; 0: H
    int64_t head_width = 0;       ///< Dh; 0: D / H
    std::optional<double> scale;  ///< default 1 / sqrt(Dh)
    bool causal = true;
    bool rope = true;
    double rope_theta = 1e5;
    bool rope_interleaved = true;
    std::optional<int64_t> query_kernel_size = 6;           ///< cq; null: no kernel before the softmax
    std::optional<int64_t> key_kernel_size = 11;            ///< ck
    std::optional<int64_t> after_sm_query_kernel_size = 6;  ///< cq2; null: no kernel after the softmax
    std::optional<int64_t> after_sm_key_kernel_size = 11;   ///< ck2
    std::string pad_key = "both";                           ///< both | left | right
    bool pre_sm_linear_head = true;                         ///< wpsm
    std::optional<int64_t> head_kernel_size = 0;            ///< c, a divisor of H; 0: all heads; null: none
    bool post_sm_linear_head = false;                       ///< wposm
    bool group_norm = true;
    double norm_epsilon = 1e-5;
    bool layer_norm_rescale = false;    ///< the norm times 1 - lambda_init
    int64_t layer_id = 0;               ///< counted from 0, for lambda_init
    std::optional<double> lambda_init;  ///< default 0.8 - 0.6 exp(-0.3 layer_id)
    bool add_gating = true;
    bool gate_1d = true;                   ///< one gate a head, else one a channel
    std::string init_method = "identity";  ///< of both kernels: identity | uniform | const | diagonal
    double depth_factor = 1;               ///< divides the standard deviation of wo and gate
    double attn_drop = 0;                  ///< of the weights A', in training
    int64_t block_rows = 0;                ///< query rows a stripe; 0: chosen by size
    bool parity = false;                   ///< a second softmax where nothing follows the first, as the official code
    void fields(Fields& f);
    void validate() const;

    // With the defaults of the zeros and nulls above.
    int64_t key_heads() const { return kv_heads ? kv_heads : heads; }
    int64_t key_width() const { return head_width ? head_width : width / heads; }
    int64_t mixed_heads() const { return head_kernel_size.value_or(0) ? *head_kernel_size : heads; }
    int64_t halo_before() const { return query_kernel_size.value_or(1) - 1; }  ///< rows that K reaches back
    int64_t halo_after() const { return after_sm_query_kernel_size.value_or(1) - 1; }
    bool mixes_after() const { return after_sm_query_kernel_size || head_kernel_size || post_sm_linear_head; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
