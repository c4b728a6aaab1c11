#pragma once

#include <ATen/ATen.h>

#include "regard/ops/attention.h"

/// Packed sequences: the tokens of S sequences one after another in one row, no padding between them.
namespace regard {

/// The segment and the position in it of each of T packed tokens, (1, T) int64; `cu_seqlens` (S + 1) holds where each
/// sequence begins, 0 first and T last.
at::Tensor packed_segments(const at::Tensor& cu_seqlens, const c10::SymInt& tokens);
at::Tensor packed_positions(const at::Tensor& cu_seqlens, const at::Tensor& segments);

/// Throws unless cu_seqlens is (S + 1) of integers that rise from 0 to `tokens`; the entries are looked at on the CPU.
void check_cu_seqlens(const char* function, const std::string& name, const at::Tensor& cu_seqlens,
                      const c10::SymInt& tokens);

/// Restricts a call, q (1, H, M, Dh), k (1, Hk, N, Dh), to pairs of the same sequence; query() and key() count from the
/// beginning of each. `arguments` hold captures by name.
void keep_sequences_apart(const char* function, const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                          const at::Tensor& q, const at::Tensor& k, AttentionSpec& spec, AttentionArguments& arguments);

/// `attention` of each sequence by itself: query sequence s attends to key sequence s.
/// q (1, H, M, Dh), k (1, Hk, N, Dh), v (1, Hk, N, Dv), cu_seqlens_q and cu_seqlens_k (S + 1). A causal mask is aligned
/// top-left in every sequence; dropout draws what a batch of the sequences, one a row, would draw.
AttentionOutput attention_packed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                                 const AttentionSpec& spec, const AttentionArguments& arguments = {});

/// The arguments with the lists put back under their names.
AttentionArguments by_name(const AttentionSpec& spec, AttentionArguments arguments);

}  // namespace regard
