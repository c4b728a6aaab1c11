#pragma once

#include <ATen/ATen.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "regard/algebra/spec.h"

namespace regard {

/// What a call of `attention` brings beside q, k, v.
struct AttentionArguments {
  std::vector<at::Tensor> captures;  ///< in the order of spec.captures() (sorted by name)
  std::vector<at::Tensor> operands;  ///< q_x, k_x of each name in spec.operands(), interleaved
  /// The same by name, put in order by `in_order`; not together with the lists. Names that the spec does not read are
  /// left out.
  std::map<std::string, at::Tensor> named_captures;
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> named_operands;
  at::Tensor sinks;              ///< (H) or (H, S) when normalizer.sinks
  at::Tensor seed;               ///< int64 scalar when spec.dropout > 0
  c10::SymInt query_offset = 0;  ///< query() = row + query_offset; N - M aligns bottom-right
  std::string path = "auto";     ///< auto | fused | stripe | composite; a named path that cannot run is an error
};

struct AttentionOutput {
  at::Tensor o;      ///< (B, H, M, Dv), dtype of q
  at::Tensor lse;    ///< (B, H, M), float32 (float64 for float64), natural logarithm of the softmax denominator;
                     ///< other normalizers: their denominator's own statistic, see ops/normalize.h
  at::Tensor pairs;  ///< (B, H, M, pair channels), float32 (float64); width 0 without pair outputs
};

/// o_i = sum_j normalizer(score_i.)_j weight_ij v_j, for every head; query head h reads key head h // (H / Hk).
/// q (B, H, M, Dh), k (B, Hk, N, Dh), v (B, Hk, N, Dv); float64, float32, bfloat16, float16.
/// Differentiable to any order in q, k, v, captures, operands and sinks; works under torch.func and torch.compile.
/// Forward mode and the derivative of the backward run in stripes on every path, under counters of their own
/// (attention_forward_mode, attention_backward_derivative; see paths.h).
AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                          const AttentionArguments& arguments = {});

/// The arguments with what is given by name put into the lists that `spec` reads; throws when a name is missing.
AttentionArguments in_order(const AttentionSpec& spec, AttentionArguments arguments);

/// The same with a spec already printed by to_json (captures and operands as lists).
AttentionOutput attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::string& spec,
                          const AttentionArguments& arguments = {});

/// Merges two partial softmax states over disjoint keys: lse = log(e^lse1 + e^lse2), o = the weighted mean.
/// The neutral element is (0, -inf).
std::pair<at::Tensor, at::Tensor> merge(const at::Tensor& o1, const at::Tensor& lse1, const at::Tensor& o2,
                                        const at::Tensor& lse2);

}  // namespace regard
