#pragma once

#include <cstdint>

#include "regard/algebra/interval.h"

namespace regard {

/// How many pairs a boolean `keep` holds of.
struct PairCount {
  double pairs = 0;   ///< over all batches and heads
  bool exact = true;  ///< false: at most; the effort ran out before every tile was decided
};

/// Counts the pairs of a whole call without its M x N matrix: a tile is decided by interval analysis or halved.
/// `whole` gives batches, heads, lengths and offset; batches and heads on which `keep` does not depend are counted
/// once. `effort` bounds the tiles looked at.
PairCount count_pairs(const Expr& keep, const Tile& whole, const CaptureRange& captures, int64_t effort = 4000000);

}  // namespace regard
