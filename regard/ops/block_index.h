#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "regard/ops/attention.h"

namespace regard {

/// Dynamic sparsity: which key blocks each query block attends to, chosen at run time, head by head.
///
///     pair (i, j) exists   iff   j // key_block is among blocks[b, h, i // query_block, :]
///                          and   (that block is full, or spec.keep holds for the pair)
///
/// Blocks are runs of consecutive tokens, the last one possibly shorter, of any length down to one: query_block 1 lets
/// every token choose, key_block 1 chooses single keys. The choice carries no gradient.
struct BlockIndex {
  int64_t query_block = 1, key_block = 1;
  /// (B or 1, Hi, Q, K) int64: kept key blocks in [0, ceil(N / key_block)), in any order, each at most once a row; -1
  /// fills a row that keeps fewer. Hi divides H: query head h reads index head h // (H / Hi).
  at::Tensor blocks;
  at::Tensor full;  ///< like blocks, bool: spec.keep is not asked in this block. Undefined: every block is partial
  /// (B or 1, Hi, Q) int64: the query blocks that the rows of `blocks` belong to, each once; -1: a row not used.
  /// Undefined: all of them in order, Q = ceil(M / query_block).
  at::Tensor queries;
  at::Tensor otherwise;  ///< o of the queries that are not selected, broadcast to (B, H, M, Dv); undefined: 0
  bool trusted = false;  ///< made by a selector that keeps the rules above: entries are not looked at

  /// blocks from a mask: (.., Q, Nb) bool, true where the pair of blocks is kept; K is the most that any row keeps.
  static at::Tensor from_mask(const at::Tensor& kept);
};

/// o_i = sum_j softmax(score_i.)_j weight_ij v_j over the pairs of the index: `attention` with a dense mask of the
/// index, in memory proportional to what is kept. q (B, H, M, Dh), k (B, Hk, N, Dh), v (B, Hk, N, Dv), as `attention`
/// takes them; batch(), head(), query(), key() of the spec are those of the whole call.
///
/// Blocks of at least 16 queries and 16 keys run in place where the fused kernel takes the spec: tiles are cut inside the
/// blocks, and those that are not kept cost nothing (path `fused` of the counter `attention_blocks`). It then is given
/// the index as a map, a byte for each pair of blocks.
///
/// Otherwise (`composite`): where key blocks are no longer than query blocks, the kept keys of each query block are
/// gathered. Where they are longer, queries are packed: those that chose a key block lie side by side and attend to that
/// block, and each query's parts are merged by their log-sum-exp. Both are gathers around `attention`. All forms are
/// differentiable to any order.
///
/// A selected query without keys has o = 0; one that is not selected has `otherwise`. lse of both is -inf.
/// Errors: normalizers but softmax (sinks are fine), dropout, dots of one named head; shapes and entries of the index.
AttentionOutput attention_blocks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const BlockIndex& index,
                                 const AttentionSpec& spec, const AttentionArguments& arguments = {});

}  // namespace regard
