#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>

#include "regard/ops/block_index.h"

namespace regard {

/// Keys in blocks of one size: block j holds columns [j size, (j + 1) size). Packed sequences are laid out anew, each
/// from the start of a block, so that no block holds tokens of two.
struct MobaLayout {
  int64_t size = 0;
  at::Tensor places;  ///< (M) or (B, M) int64: the column of each query's own token
  at::Tensor first;   ///< like places: the first block of its sequence; undefined: 0
  at::Tensor k, v;    ///< (B, Hk, columns, Dh), (B, Hk, columns, Dv)

  at::Tensor own() const;  ///< like places: the block of each query's own token
};

/// Queries at `positions` (M) or (B, M) in sequences whose tokens are the keys in order.
MobaLayout moba_layout(const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions, int64_t size);
/// Packed: one row of T queries and keys, `segments` (T) and `positions` (T) of each token, cu_seqlens (S + 1) int64.
MobaLayout moba_layout(const at::Tensor& k, const at::Tensor& v, const at::Tensor& positions,
                       const at::Tensor& segments, const at::Tensor& cu_seqlens, int64_t size);

/// (B, H, M, min(topk, blocks)) int64: the query's own block and the topk - 1 earlier ones of its sequence with the
/// largest <q, mean of the block's keys>, -1 where there are fewer. No gradient; stripes of queries, never M x blocks.
at::Tensor moba_choice(const at::Tensor& q, const MobaLayout& layout, int64_t topk);

/// Attention to the chosen blocks, causal inside the query's own: gathers of a BlockIndex.
AttentionOutput moba_attend(const at::Tensor& q, const MobaLayout& layout, const at::Tensor& choice,
                            std::optional<double> scale, const std::string& path);

/// The same choice as an expression: capture NAME[batch, head, row, block of the key], from (B, H, M, blocks + 1)
/// booleans.
at::Tensor moba_chosen(const MobaLayout& layout, const at::Tensor& choice);

/// The op on packed tokens: q (T, H, Dh), k (T, Hk, Dh), v (T, Hk, Dv), cu_seqlens (S + 1) int; o (T, H, Dv).
/// `form`: "blocks", or "naive", which masks dense attention of all T x T pairs.
at::Tensor moba(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens,
                int64_t chunk_size, int64_t topk, std::optional<double> scale = std::nullopt,
                const std::string& form = "blocks", const std::string& path = "auto");

}  // namespace regard
