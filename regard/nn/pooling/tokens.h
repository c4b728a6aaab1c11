#pragma once

#include <ATen/ATen.h>

#include <string>

#include "regard/nn/context.h"

namespace regard {

/// What a pool looks at: the tokens behind the prefix, or all of them, and which of them exist.
///
/// x is (B, N, D); a map (B, D, H, W) is flattened row by row. `lengths` (B) counts the tokens of each row of x as it
/// was given, the prefix included. Padding is zeroed, so that nothing in it, NaN included, reaches a result or a
/// gradient. Throws regard::Error when no token is left (N = 0).
struct PoolTokens {
  at::Tensor x;        ///< (B, N, D)
  at::Tensor lengths;  ///< (B) int64: how many of these tokens exist; undefined: all
  at::Tensor padded;   ///< (B, N) boolean, true where the token does not exist; undefined: all exist
  at::Tensor empty;    ///< (B) boolean, true for a row without tokens; undefined: none is

  PoolTokens(const std::string& function, const at::Tensor& x, Context& context, bool include_prefix);

  /// x with `value` in place of padding, except in rows without tokens, which stay zero (and are dropped by `finish`).
  at::Tensor filled(const at::Tensor& tensor, double value) const;
  /// The number of tokens of each row, at least 1: (B, 1) in x's dtype, or a scalar.
  at::Tensor count() const;
  /// Over the tokens that exist, those of other shards too, (B, D): their sum, it divided by their number, the maximum.
  at::Tensor sum(const at::Tensor& tensor) const;
  at::Tensor mean(const at::Tensor& tensor) const;
  at::Tensor greatest(const at::Tensor& tensor) const;
  /// y (B, D) with zeros (and zero gradients) for rows without tokens.
  at::Tensor finish(const at::Tensor& y) const;

 private:
  Context& context_;
  c10::SymInt tokens_ = 0;  ///< to pool, on all shards, padding counted
};

}  // namespace regard
