#pragma once

#include <map>

#include "regard/nn/dense/relational_attention.h"

/// What the heads of relational attention share: one call, its masks, and the relations as expressions of a pair.
namespace regard::relational {

using Config = RelationalAttention::Config;

double inverse_root(int64_t width);

/// act(s) of a pair; softmax is not pointwise.
Expr activated(const std::string& name, const Expr& s);

struct Call {
  const Config& config;
  const Weights& weights;
  const at::Tensor& x;  ///< padding zeroed
  Context& context;

  at::Tensor heads(const std::string& name, int64_t count) const;  ///< (B, count, N, .) of the projection `name`
  at::Tensor turned(const at::Tensor& t) const;                    ///< RoPE where the configuration says so
  /// Scale, mask and dropout of either group of heads.
  AttentionSpec spec(AttentionArguments& arguments) const;
};

/// Receiver and sender sides of the relations: (B, 1, N, R Dr), or a head each in disrca (B, Hr, N, Dh).
struct Relations {
  at::Tensor q, k;
  int64_t count = 0, width = 0;
  std::vector<Expr> values;  ///< r_ijl, after the activation

  at::Tensor map(const Call& call) const;  ///< (B, M, N, R): all relations in full, for looking at
};
/// Adds the operand "relation" to `arguments` and what else the values read.
Relations relate(const Call& call, AttentionArguments& arguments);

Golden official_cases();

}  // namespace regard::relational
