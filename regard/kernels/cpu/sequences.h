#pragma once

#include <optional>
#include <vector>

#include "regard/algebra/band.h"
#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/program_cache.h"

namespace regard::kernels {

/// Sequences packed one after another in the single row of a call, told by captured numbers that never fall:
///
///     keep = (ids_q[b, row()] == ids_k[b, column()]) & rest
///
/// Tiles cut to lie inside the sequences need no program for that: key tiles of other sequences are skipped, and in a
/// sequence's own `rest` alone is asked.
struct Sequences {
  /// What the expressions say of sequences, taken out of them: `pairs` is left with the rest. None where they do not
  /// have this form, or where the captured numbers are not in order.
  static std::optional<Sequences> take(PairExpressions& pairs, const PairSpace& space,
                                       const std::vector<Capture>& captures);

  /// The sequence of a row of the queries.
  int64_t of_query(int64_t row) const;
  /// column - row of two tokens at the same place of their sequence.
  int64_t shift(int64_t sequence) const {
    return key_starts[static_cast<size_t>(sequence)] - query_starts[static_cast<size_t>(sequence)];
  }
  /// The band that a mask is over places in the sequence, which captured positions say.
  std::optional<Band> band_of(const Expr& keep, const PairSpace& space, const std::vector<Capture>& captures) const;

  std::vector<int64_t> query_starts, key_starts;  ///< S + 1 each
};

}  // namespace regard::kernels
