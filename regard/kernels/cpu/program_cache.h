#pragma once

#include <memory>
#include <string>
#include <vector>

#include "regard/kernels/cpu/program.h"

namespace regard::kernels {

/// The expressions of a resolved spec, defaults filled in; `weight` is undefined where it is 1.
struct PairExpressions {
  Expr score, keep, counted, weight;
  bool masked() const { return !keep.is_constant(1) || !counted.is_constant(1); }
};
PairExpressions expressions_of(const AttentionSpec& spec);

/// Programs for tiles in which some pairs are hidden, and for tiles in which none is.
struct Programs {
  PairExpressions pairs;
  std::vector<Expr> dots;
  Program open, masked;
};

/// Compiled once for every (expressions, side, leaves to differentiate) and kept; a repeated call costs a look-up.
/// `wanted`: backward only, the captures whose gradients are wanted (sorted).
std::shared_ptr<const Programs> cached_programs(const PairExpressions& pairs, Side lanes, bool backward,
                                                const std::vector<std::string>& wanted);

}  // namespace regard::kernels
