#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <vector>

#include "regard/ops/attention.h"

/// States: attending is absorbing keys and values into a state, states merge, and a finished state is the output.
///
///     attention(q, [k1 k2], [v1 v2]) = finish(merge(absorb(q, k1, v1), absorb(q, k2, v2)))
///
/// Everything is made of differentiable operations on top of regard::attention, so every path and kernel serves.
/// Merging is associative and commutative for every normalizer. The entries of a state, B batch, H heads, M queries:
///
///     softmax, signed softmax   o normalized over what was absorbed, lse; counted_lse where `counted` is not `keep`;
///                               with an epsilon top = max |s| and how many parts have it
///     sigmoid                   o
///     relu, identity            o; count where a divisor is a number of keys
///     sum                       o not divided, l = sum of max(s, 0) over the counted pairs
///     z_score                   n, mean, M2 of the counted scores, A = sum w (s - mean) v, V = sum w v
///
/// and with pair outputs one more of each entry that is summed over values (`pairs`; z-score: pairs_A, pairs_V).
namespace regard {

/// Named tensors, in compute dtype (float32, or float64 for float64), every one (B, H, M) or (B, H, M, width).
struct State {
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;

  bool defined() const { return !names.empty(); }
  void set(const std::string& name, at::Tensor tensor);
  const at::Tensor& operator[](const std::string& name) const;  ///< throws when absent
  at::Tensor find(const std::string& name) const;               ///< undefined when absent
};

struct StateEntry {
  std::string name;
  int64_t width = 0;  ///< 0: (B, H, M)
};
/// What a state of this spec holds, for values of width Dv, absorbed without `keys`.
std::vector<StateEntry> state_entries(const AttentionSpec& spec, int64_t value_width);
/// Bytes of one: B H M (sum of widths) times the element's size.
int64_t state_bytes(const AttentionSpec& spec, int64_t B, int64_t H, int64_t M, int64_t value_width,
                    int64_t element_size);

/// The state of one source of keys and values. q (B,H,M,Dh), k (B,Hk,N,Dh), v (B,Hk,N,Dv); sinks are not absorbed (give
/// them to `finish`). `keys`: how many keys there are in all sources, which keys() and the divisor "keys" mean; without
/// it the divisor counts what is absorbed, and a spec that reads keys() is refused.
State absorb(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
             const AttentionArguments& arguments, const std::optional<c10::SymInt>& keys = std::nullopt);

/// The state of the keys of both; an undefined state is the neutral one. The specs with which they were absorbed may
/// differ in all but the normalizer.
State merge(const AttentionSpec& spec, const State& earlier, const State& later);

/// o in `dtype` (what q had), lse and pairs as regard::attention returns them. `sinks` (H) or (H, S) exactly when the
/// spec has them.
AttentionOutput finish(const AttentionSpec& spec, const State& state, const at::Tensor& sinks, at::ScalarType dtype);

/// A state as terms that add up over the parts of the keys. `reference`: a constant that all parts share (the
/// log-sum-exp of the whole, the mean of the whole; see reference_of), so that with a whole's reference nothing
/// overflows or cancels.
std::vector<at::Tensor> terms_of(const AttentionSpec& spec, const State& state, const State& reference);
State state_of(const AttentionSpec& spec, const State& like, const std::vector<at::Tensor>& terms,
               const State& reference);
/// The constants of a whole state.
State reference_of(const AttentionSpec& spec, const State& whole);

}  // namespace regard
