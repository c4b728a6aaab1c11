#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// MoBA, mixture of block attention: every query, head by head, attends to its own block up to itself and to the
/// topk - 1 earlier blocks whose mean key it agrees with most.
///
///     blocks_i = {b(i)} and the topk - 1 blocks j < b(i) of largest <q_i, mean of the keys of j>
///     o_i = sum_t softmax_t(scale <q_i, k_t>) v_t   over t <= i in blocks_i,        y = concat_h o Wo + bo
///
/// x (B, N, D); y (B, N, D); any floating dtype, the gate in float32 at least. Causal self-attention only. b(i) counts
/// blocks of chunk_size tokens from the start of the sequence: of each packed one, of the whole sequence in a decode
/// (keys and values are remembered, block means follow from the keys). Keys are ranked after their rotation. The choice
/// carries no gradient and adds no weights: a layer may be switched to `full` attention and back at any time.
///
/// form "blocks" gathers what was chosen (see BlockIndex) in memory of what is kept; "naive" masks dense attention.
/// Both are the same numbers. Where the map itself is asked for (output attn, taps, edits) the naive form runs.
/// `lengths` (B): padding; a padded token gives y = 0. Query head h reads key head h // (heads / kv_heads) and chooses
/// for itself.
///
/// Weights, named as softmax-attention's: in_proj_weight (H Dh + 2 Hk Dh, D) rows q | k | v, in_proj_bias;
/// out_proj.weight (D, H Dh), out_proj.bias.
/// Errors: widths and heads that do not divide, chunk_size or topk < 1, an unknown form, causal false.
///
/// Paper: Lu et al., 2025, MoBA: Mixture of Block Attention for Long-Context LLMs (arXiv 2502.13189).
struct Moba {
  struct Config {
    int64_t width = 0;         ///< D
    int64_t heads = 8;         ///< H
    int64_t kv_heads = 0;      ///< Hk, a divisor of H; 0: H
    int64_t head_width = 0;    ///< Dh; 0: D / H
    int64_t chunk_size = 512;  ///< tokens of a block
    int64_t topk = 3;          ///< blocks of a query, its own counted
    bool full = false;         ///< attend to every earlier token instead
    std::string form = "blocks";
    bool causal = true;  ///< always
    bool qkv_bias = true;
    bool out_bias = true;
    std::optional<double> scale;  ///< default 1 / sqrt(Dh)
    bool rope = false;
    double rope_theta = 10000;
    bool rope_interleaved = false;
    void fields(Fields& f);
    void validate() const;

    int64_t key_heads() const { return kv_heads ? kv_heads : heads; }
    int64_t key_width() const { return head_width ? head_width : width / heads; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
