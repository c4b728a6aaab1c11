#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Set Transformer: attention blocks on sets, composed as a list of stages.
///
///     MAB(Q, K): o = q_h + softmax_j(<q_h, k_hj> / sqrt(W)) v_h per head,  q = Q Wq, k = K Wk, v = K Wv
///                y = n1(o' + relu(o' Wo)),  o' = n0(concat_h o)                n0, n1: LayerNorm, or none
///     sab: X <- MAB(X, X)      isab: X <- MAB(X, MAB(I, X))      pma: X <- MAB(S, X)      mab: X <- MAB(X, memory)
///
/// x (B, N, D); W = hidden. I: `inducing` learned points (cost linear in N); S: `seeds` learned queries. The scale is
/// that of the full width W, and the residual is the projected query, before any norm. Further stages: "dropout" (of
/// the elements, in training) and a last "linear" (to `classes`). Stages run in the given order; behind a pma the set
/// is its `seeds` elements.
///
/// y: the seeds side by side (B, seeds W), (B, W) with one seed; with `keep_seeds` (B, seeds, W); without a pma the
/// elements (B, N, W), to any permutation of the tokens permuted alike. With a pma y does not depend on their order.
/// `lengths` (B), `memory_lengths` (B): padding is no element of the set, in every block; its y is 0, and so is that of
/// an empty set behind a pma. Prefix tokens (class, registers) are left out in front of a pma unless `include_prefix`.
/// Packed sequences (cu_seqlens) run through sab alone. There is no causal form: every block sees the whole set.
/// Outputs: `stage0` .. `stage7` (B, n, W), what each stage gives; `attn` (B, heads, seeds, N), the last pma's weights.
///
/// Weights, named as the official modules: STAGE.mab.fc_q, fc_k, fc_v, fc_o (weight, bias), ln0, ln1 with layer_norm;
/// isab: STAGE.I (1, inducing, W), STAGE.mab0, STAGE.mab1; pma: STAGE.S (1, seeds, W); mab and linear: STAGE itself.
/// STAGE is the stage's kind, with its number when the kind occurs twice ("isab0", "isab1"), or the given `names`
/// (["enc.0", "enc.1", "dec.0"] for the official models).
/// Errors: width or heads that do not divide, unknown stages, two pma, mab without memory, by name.
///
/// Paper: Lee et al., ICML 2019, Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks
/// (arXiv 1810.00825).
struct SetTransformer {
  struct Config {
    int64_t width = 0;   ///< D
    int64_t hidden = 0;  ///< W; 0: D
    int64_t heads = 4;
    int64_t inducing = 32;
    int64_t seeds = 1;
    bool layer_norm = false;
    std::vector<std::string> stages = {"isab", "isab", "pma"};
    std::vector<std::string> names;  ///< prefixes of the stages' weights; empty: as above
    int64_t memory_width = 0;        ///< of mab's memory; 0: D
    int64_t classes = 0;             ///< width of "linear"
    double drop = 0.5;               ///< of "dropout"
    bool keep_seeds = false;
    bool include_prefix = false;
    double norm_epsilon = 1e-5;
    void fields(Fields& f);
    void validate() const;

    int64_t inner() const { return hidden ? hidden : width; }
    bool has(const std::string& stage) const;
    std::string prefix(size_t stage) const;  ///< of its weights, "isab."
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
