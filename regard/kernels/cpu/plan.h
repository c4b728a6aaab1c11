#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "regard/algebra/band.h"
#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/program_cache.h"
#include "regard/kernels/cpu/tile_layout.h"

namespace regard::kernels {

/// One side (queries or keys) of an operand: (B, heads, L, columns), read in place through strides, and where its
/// gradient goes (contiguous), if anywhere.
template <class T>
struct SideArray {
  Array4<const T> array;
  int64_t heads = 1, group = 1;  ///< operand head = query head / group
  int64_t only_head = -1;
  int64_t length = 0, columns = 0;
  int64_t begin = 0, width = 0;  ///< the columns read: [begin, begin + width)
  T* gradient = nullptr;

  int64_t head_of(int64_t query_head) const { return only_head >= 0 ? only_head : query_head / group; }
  const T* at(int64_t batch, int64_t query_head, int64_t row) const {
    return array.data + batch * array.batch + head_of(query_head) * array.head + row * array.row + begin * array.column;
  }
  T* gradient_at(int64_t batch, int64_t query_head, int64_t row) const {
    return gradient + ((batch * heads + head_of(query_head)) * length + row) * columns + begin;
  }
};

/// A distinct dot leaf of the spec and what it multiplies.
template <class T>
struct DotOperand {
  Expr expr;
  SideArray<T> q, k;
};

/// What forward and backward derive from a call before any pair is computed.
template <class T>
struct Plan {
  explicit Plan(const Attention<T>& call);

  const Attention<T>& call;
  PairSpace space;
  PairExpressions pairs;               ///< score, keep, counted, weight
  std::optional<BlockList> blocks;     ///< what was taken out of keep and counted: which blocks hold pairs at all,
  std::optional<Sequences> sequences;  ///< or which tokens
  TileLayout layout() const { return {blocks ? &*blocks : nullptr, sequences ? &*sequences : nullptr}; }
  /// The score is scale() * dot(), unweighted: queries are packed times scale log2(e), so that products are scores in
  /// base 2 and only masks need a program (`pairs.score` is then dot()).
  bool plain = false;
  /// Whether the normalizer is of exponentials and keeps a maximum: softmax, signed softmax. Only their scores may be
  /// in base 2.
  bool exponential = true;
  std::optional<Band> band;     ///< what keep is, where it is one and the counted pairs are the kept ones
  bool band_of_places = false;  ///< it is one of places in the sequences, not in the rows
  std::vector<DotOperand<T>> dots;
  SideArray<T> v;
};

/// The programs of one side and the call's tensors bound to them.
struct BoundPrograms {
  std::shared_ptr<const Programs> programs;
  std::vector<Reading> open, masked;
};
/// Which derivatives a program computes: by the dots, and by the captured tensors whose gradients are wanted.
enum class Derivatives : uint8_t { none, dots, captures };
template <class T>
BoundPrograms bind_programs(const Plan<T>& plan, Side lanes, Derivatives derivatives);

}  // namespace regard::kernels
