#pragma once

#include <string_view>

#include "regard/ops/block_index.h"
#include "regard/ops/call.h"

/// A BlockIndex as part of the mask of one call of attention: the form that the fused kernel cuts its tiles by.
namespace regard::ops {

/// Whether the call runs so: on the fused kernel, with blocks that are worth a tile.
bool maps_blocks(const Call& call, const BlockIndex& index, std::string_view path);

/// attention with keep = kept[b, h, row() // query_block, column() // key_block] & (spec.keep | full[likewise]).
AttentionOutput attend_mapped(const BlockIndex& index, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const AttentionSpec& spec, const AttentionArguments& arguments);

/// (B or 1, H, M) bool: the queries of the query blocks that `index.queries` lists.
at::Tensor selected_queries(const BlockIndex& index, const c10::SymInt& heads, const c10::SymInt& queries);

}  // namespace regard::ops
