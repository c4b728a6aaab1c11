#pragma once

#include "regard/nn/dense/relational_attention_symbols.h"

namespace regard {

/// Dual attention: some heads carry what the sender is, the others how receiver and sender are related.
///
///     self heads        y_s = Wo concat_h sum_j a_ij v_j
///     relational heads  o_i = sum_j a_ij (Ws s_j + Wr r_ij),  a_i = softmax_j(<Wq x_i, Wk x_j> / sqrt(Dh))
///                       r_ijl = act(<Wq_rel,l x_i, Wk_rel,l x_j> / sqrt(Dr)),  l = 1..R, for all heads alike
///     y = concat(y_s, Wo concat_h o_h)
///
/// x (B, N, D) -> y (B, N, D), any floating dtype, Dh = D / (self_heads + relational_heads); nothing mixes the two
/// groups after their own output projections. s_j is the symbol of token j (see SymbolConfig), or s_ij that of the pair
/// with relative symbols. r is averaged first and projected afterwards: sum_j a_ij r_ij is a sum over keys beside o,
/// never an (N, N, R) tensor, and relative symbols are sums of a_ij over the 2 L + 1 distances times the projected
/// table. Forms kept for comparison: `rca`, o_i = sum_j act(<q_i, k_j> / sqrt(Dh)) Ws s_j, with softmax or any
/// activation; and `disrca`, o_i = sum_j a_ij r^h_ij Ws s_j with one relation of width Dh a head.
///
/// Query head h reads key head h // (H / Hk); relations are counted apart from heads. RoPE (pairs 2t, 2t + 1) turns
/// what the weights a are made of, never relations. The activation softmax is over all keys j of a row, the future
/// included: it is refused with causal. A padded token gives y = 0; a query without keys o = 0. The relational heads of
/// the default form run in stripes: sums beside o are not on the fused path.
///
/// Weights: self_attention.{wq,wk,wv,wo}; relational_attention.{wq_attn,wk_attn,wq_rel,wk_rel,wv,wo} and wr (Hr, Dh, R)
/// (wk_rel is wq_rel when symmetric); rca {wq,wk,wv,wo}; those of the symbols under "symbols.".
///
/// Errors: heads that do not divide, relations * relation_width other than relational_heads * Dh, options of another
/// form, the activation softmax or neighbors on both sides with causal, by name.
///
/// Paper: Altabaa & Lafferty, 2024, Disentangling and Integrating Relational and Sensory Information in Transformer
/// Architectures (arXiv 2405.16727); rca: Altabaa et al., 2023, Abstractors and relational cross-attention.
struct RelationalAttention {
  struct Config : SymbolConfig {
    int64_t width = 0;                ///< D
    int64_t self_heads = 0;           ///< Hs
    int64_t relational_heads = 0;     ///< Hr
    std::string form = "relational";  ///< relational | rca | disrca
    int64_t relations = 0;            ///< R; 0: relational_heads
    int64_t relation_width = 0;       ///< Dr; 0: Dh Hr / R, and R Dr must equal Hr Dh
    int64_t key_width = 0;            ///< of wq_attn, wk_attn; 0: Dh. The scale stays 1 / sqrt(Dh)
    int64_t kv_heads = 0;             ///< of the relational heads; 0: relational_heads
    int64_t self_kv_heads = 0;        ///< 0: self_heads
    std::string activation =
        "identity";  ///< of relations: identity, relu, sigmoid, tanh, gelu, silu, softmax; rca: of scores
    bool symmetric = false;
    bool kv_bias = false, out_bias = false;  ///< of the relational heads
    bool self_kv_bias = false, self_out_bias = false;
    bool share_attention = false;  ///< self wq, wk are wq_attn, wk_attn
    bool rope = false;
    double rope_theta = 10000;
    bool causal = false;
    double attn_drop = 0, proj_drop = 0;
    void fields(Fields& f);
    void validate() const;

    // With the defaults of the zeros above.
    int64_t head_width() const { return width / (self_heads + relational_heads); }
    int64_t relation_count() const { return relations ? relations : relational_heads; }
    int64_t relations_width() const {
      return relation_width ? relation_width : head_width() * relational_heads / relation_count();
    }
    int64_t keys_width() const { return key_width ? key_width : head_width(); }
    int64_t key_heads() const { return kv_heads ? kv_heads : relational_heads; }
    int64_t self_key_heads() const { return self_kv_heads ? self_kv_heads : self_heads; }
    bool relative() const { return symbols == "relative"; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
