#pragma once

#include <ATen/ATen.h>

#include "regard/ops/attention.h"

namespace regard {

/// Keys and values of sequences in pages that any sequence may hold: token j of sequence b is entry j % page of page
/// table[b][j / page].
struct Pages {
  at::Tensor k;        ///< (P, Hk, page, Dh)
  at::Tensor v;        ///< (P, Hk, page, Dv)
  at::Tensor table;    ///< (B, n) integer; entries behind a sequence's last page are never read (-1 will do)
  at::Tensor lengths;  ///< (B) integer, tokens of each sequence, at most n * page
};

/// `attention` of q (B, H, M, Dh) over the first lengths[b] tokens of each sequence. key() is the token's place in its
/// sequence, wherever its page lies; query() is row + query_offset, or `query_positions` (B, M) or (M) where given (a
/// decode whose queries are the last tokens: lengths - M + row). Differentiable in q, the pages and everything else.
///
/// A decode (nothing differentiated, at most 8 queries for each key head, a spec of the fused kernels without operands)
/// reads the pages where they lie: path `fused` of the counter `attention_paged`. Every other call gathers the pages of
/// the call first (`composite`) and then is an `attention`, whose own counter says how that ran.
AttentionOutput attention_paged(const at::Tensor& q, const Pages& pages, const AttentionSpec& spec,
                                const AttentionArguments& arguments = {}, const at::Tensor& query_positions = {});

/// (P, Hk, page, D) to (B, Hk, n * page, D); pages that no token lies on are page 0. Throws for a page that is not
/// there.
at::Tensor gather_pages(const at::Tensor& pages, const at::Tensor& table, const at::Tensor& lengths);

}  // namespace regard
