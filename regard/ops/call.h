#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "regard/ops/spec_facts.h"

/// One call of attention as the paths see it, and the rows of it that a stripe computes.
namespace regard::ops {

struct Call {
  at::Tensor q, k, v;                         ///< (B,H,M,Dh) (B,Hk,N,Dh) (B,Hk,N,Dv)
  std::shared_ptr<const SpecFacts> facts;     ///< of the spec; set by make_call
  std::shared_ptr<const AttentionSpec> spec;  ///< resolved and interned
  std::vector<at::Tensor> captures;           ///< in the order of facts->captures
  std::vector<at::Tensor> operands;           ///< q_x, k_x of each facts->operands
  at::Tensor sinks;                           ///< (H, S) or undefined
  at::Tensor seed;                            ///< int64 scalar or undefined
  c10::SymInt query_offset = 0;
  bool finite = false;  ///< every number of the call was seen to be finite: no product needs a guard

  c10::SymInt B() const { return q.sym_size(0); }
  c10::SymInt H() const { return q.sym_size(1); }
  c10::SymInt M() const { return q.sym_size(2); }
  c10::SymInt N() const { return k.sym_size(2); }
  double scale() const;            ///< the spec's, or 1/sqrt(Dh)
  at::ScalarType compute() const;  ///< float64 for float64 inputs, else float32
};

/// Refuses other numbers of captures and operands than the spec reads: `reads` names of captures, `pairs` of operands.
void check_counts(const char* function, size_t reads, size_t pairs, at::TensorList captures, at::TensorList operands);

/// Checks every argument; `function` names the caller in messages. Shapes may be symbolic.
Call make_call(const char* function, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               std::string_view spec, at::TensorList captures, at::TensorList operands,
               const std::optional<at::Tensor>& sinks, const std::optional<at::Tensor>& seed,
               const c10::SymInt& query_offset);

/// Query rows: a range, or chosen ones.
struct Rows {
  c10::SymInt begin, end;
  at::Tensor chosen;                                         ///< int64 (R), or undefined for the range
  at::Tensor of(const at::Tensor& t, int64_t dim) const;     ///< these rows of t
  at::Tensor index(const at::TensorOptions& options) const;  ///< int64 (m)
};
Rows all_rows(const Call& call);

/// True when the tensor only stands for one while a program is recorded.
bool traced(const at::Tensor& t);

/// True when the tensor holds numbers that can be read now: no fake, traced, or functorch-wrapped tensor.
bool concrete(const at::Tensor& t);

/// (B, Hx, L, D) to (B, H, L, D): each head repeated H / Hx times.
at::Tensor repeat_heads(const at::Tensor& t, const c10::SymInt& heads);
/// The transpose of repeat_heads: sums each group.
at::Tensor sum_heads(const at::Tensor& t, const c10::SymInt& heads);

}  // namespace regard::ops
