#pragma once

#include "regard/ops/call.h"

/// Where the queries and keys of a call lie: the values of query() and key() in an expression.
namespace regard::ops {

/// query() of the stripe's rows, (1, m) or (B, m) int64.
at::Tensor query_positions(const Call& call, const Rows& rows);
/// key() of every key, (1, N) or (B, N) int64.
at::Tensor key_positions(const Call& call);

/// The capture that tells the segment of each token of a packed call, (1, T) int64, queries' and keys'.
inline constexpr const char* packed_query_segments = "packed_query_segments";
inline constexpr const char* packed_key_segments = "packed_key_segments";
/// The batch row that a query belongs to, (B, m) int64: of a packed call its segment, else (B, 1), the row itself.
at::Tensor sequence_of_rows(const Call& call, const Rows& rows);

}  // namespace regard::ops
