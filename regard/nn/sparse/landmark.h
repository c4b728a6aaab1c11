#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Landmark attention: a landmark token closes every block of tokens, and the weight that it wins is shared out inside
/// its block. Landmarks then serve as an index of what to fetch.
///
///     o_t = sum_{s in t's block} p_s v_s + sum_{past blocks b} p_b sum_{s in b} softmax_b(s) v_s
///     p = softmax over the landmarks of past blocks and the ordinary tokens of t's own block,   y = concat_h(o_h) Wo
///
/// x (B, N, D), input `is_mem` (B, N) bool: landmarks; default every (mem_freq + 1)-th token. y (B, N, D); float32
/// inside for half types. Causal. The values of landmarks are never used, and the landmark of a token's own block is
/// hidden from it, from itself too. Weights of a row sum to 1; a row that sees nothing (a landmark first) gives 0, and
/// a landmark that closes an empty block loses its share. Rotary positions turn channels (2i, 2i + 1) by
/// theta^(-2i/Dh). A padded token gives y = 0. Packed: blocks and positions start with each segment.
///
/// `form` says how: mask (any spacing), flash (two levels of states, regular spacing), auto (flash
/// where is_mem, packing and attn_drop are absent, but not in a recorded program, whose length the count of blocks
/// would bind). Both run in stripes of query rows and are equal.
///
/// Decoding keeps k (before rotation), v and is_mem of all tokens. With `topk` it fetches: each call is a chunk; of the
/// blocks finished by earlier calls every query and head sees the topk whose landmarks score highest (`selection`:
/// per_token_and_head; max_over_tokens and max_over_heads choose one set for all of them, by the largest share), in
/// order of age, beside the chunk and the unfinished block. Positions are stingy, b = mem_freq + 1: the chunk starts at
/// min(blocks, topk + 1) b plus the unfinished tokens; landmarks of the topk newest blocks stand in places 1 .. topk,
/// older ones in place 0; the r-th block fetched lies at r b, one place later if it is among the newest. A call without
/// a cache attends to everything. At most as many blocks are fetched as there are.
///
/// Weights, named as the official ones: c_attn.weight (3 D, D) rows q | k | v, c_proj.weight (D, D); with bias
/// c_attn.bias (3 D), c_proj.bias (D). The landmark token's embedding belongs to the model.
///
/// Errors: width not a multiple of heads, is_mem of another shape or with topk, contradictory options, by name.
///
/// Paper: Mohtashami and Jaggi, NeurIPS 2023, Landmark Attention: Random-Access Infinite Context Length for
/// Transformers (arXiv 2305.16300).
struct Landmark {
  struct Config {
    int64_t width = 0;  ///< D
    int64_t heads = 8;  ///< H
    bool bias = false;
    int64_t mem_freq = 50;        ///< ordinary tokens a block
    std::optional<double> scale;  ///< default 1 / sqrt(Dh)
    bool causal = true;           ///< false is refused: blocks are closed behind their tokens
    bool rope = true;
    double rope_theta = 10000;
    std::string form = "auto";                     ///< auto | mask | flash
    double group_dropout = 0;                      ///< of the shares of past blocks, in training
    double attn_drop = 0;                          ///< of the weights, in training
    double proj_drop = 0;                          ///< of y, in training
    std::optional<int64_t> topk;                   ///< blocks fetched from the cache; null: all tokens
    std::string selection = "per_token_and_head";  ///< | max_over_tokens | max_over_heads
    int64_t block_rows = 0;                        ///< query rows a stripe; 0: chosen by size
    bool parity = false;  ///< rotary frequencies rounded to float32, as the official code has them
    void fields(Fields& f);
    void validate() const;
    int64_t head_width() const { return width / heads; }
    int64_t block() const { return mem_freq + 1; }
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
