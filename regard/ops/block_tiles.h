#pragma once

#include <ATen/ATen.h>

#include "regard/ops/block_index.h"

/// Tiles of a BlockIndex: every tile is one small dense attention, all of one size, stacked along the batch.
namespace regard::ops {

/// The sizes of a call, the index expanded to all heads.
struct Blocked {
  c10::SymInt B, H, M, N;
  c10::SymInt query_blocks, key_blocks;  ///< ceil(M / query_block), ceil(N / key_block)
  c10::SymInt Q, K;                      ///< rows of the index and slots of a row
  int64_t query_block, key_block;
  at::Tensor blocks, full, queries;  ///< (B,H,Q,K), (B,H,Q,K) or undefined, (B,H,Q); -1: nothing

  /// Gather the keys of each query block (true), or pack the queries of each key block (false).
  bool by_query() const { return key_block <= query_block; }
};

/// T tiles of R query blocks and C key blocks of one head each.
struct Tiles {
  at::Tensor batch, head;  ///< (T) int64
  at::Tensor rows;         ///< (T, R) int64: query blocks, -1: none
  at::Tensor columns;      ///< (T, C) int64: key blocks, -1: none
  at::Tensor full;         ///< (T, R, C) bool or undefined
  at::Tensor places;  ///< packed queries: (B,H,Q,K) int64, entry -> tile * R + row; T * R: not kept. Else undefined
};

Tiles make_tiles(const Blocked& call);

/// attention of every tile: o (T, 1, R * query_block, Dv), lse, pairs. Sinks are left to the caller.
AttentionOutput attend_tiles(const Blocked& call, const Tiles& tiles, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const AttentionSpec& spec, const AttentionArguments& arguments);

}  // namespace regard::ops
