#pragma once

#include <memory>
#include <string>

#include "regard/ops/attention.h"
#include "regard/scale/layout.h"
#include "regard/scale/transport.h"

namespace regard::sharding {

/// regard::attention over the tokens of all ranks of a ring (Liu, Zaharia, Abbeel, 2023, Ring Attention with Blockwise
/// Transformers; zigzag: Zhu, 2024, ring-flash-attention).
///
/// q (B,H,m,Dh), k (B,Hk,n,Dh), v (B,Hk,n,Dv) hold this rank's tokens, as token_of_rank deals them out: any length,
/// uneven shards, empty ones. Queries stay; keys and values, with captures read by column() and key halves of operands,
/// travel in W-1 hops while the block at hand is absorbed; states merge. query() and key() are global. Blocks that the
/// mask excludes are passed on unread. Memory: two blocks of keys and values, one state.
///
/// The backward sends keys and values round again and recomputes each block against the final state; gradients of what
/// travels accumulate in float32 (float64 for float64) on W hops and end on their owners. Captures, sinks and whatever
/// every rank holds get their local contribution: sum the gradients of replicated tensors over the ranks, as in data
/// parallelism. First derivatives only.
AttentionOutput ring_attention(const std::string& executor, std::shared_ptr<Transport> transport, Layout layout,
                               const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                               const AttentionArguments& arguments);

}  // namespace regard::sharding
