#pragma once

#include <memory>
#include <vector>

#include "regard/kernels/cpu/evaluator.h"
#include "regard/kernels/cpu/few_queries_chunks.h"
#include "regard/kernels/cpu/few_queries_kernels.h"
#include "regard/kernels/cpu/few_queries_storage.h"
#include "regard/kernels/cpu/rounding.h"

namespace regard::kernels {

/// The call without its arrays, for checks that do not look at them.
template <class T, class S>
Attention<T> sizes_of(const Attention<T, S>& call) {
  Attention<T> sizes;
  sizes.B = call.B, sizes.H = call.H, sizes.Hk = call.Hk, sizes.M = call.M, sizes.N = call.N;
  sizes.Dh = call.Dh, sizes.Dv = call.Dv;
  sizes.query_offset = call.query_offset;
  sizes.scale = call.scale;
  sizes.spec = call.spec;
  sizes.sinks = call.sinks;
  sizes.sink_count = call.sink_count;
  return sizes;
}

/// The columns [begin, begin + width) of q and k that a dot multiplies.
struct FewDot {
  int64_t begin = 0, width = 0;
};

/// What forward and backward derive from a call. Row r of a key head is query r % M of the group's head r / M.
template <class T, class S>
struct FewPlan {
  FewPlan(const Attention<T, S>& call, bool backward);

  const Attention<T, S>& call;
  PairExpressions pairs;
  PairSpace space;
  std::shared_ptr<const Programs> programs;  ///< keys in the lanes
  std::vector<FewDot> dots;
  std::vector<Reading> open, masked;  ///< their reads bound to the call's tensors
  bool plain = false;                 ///< score is scale * dot and weight 1: no program where all is kept
  int64_t group = 1, rows = 1;        ///< query heads of a key head; group * M
  T factor = 1;                       ///< multiplied onto packed queries: scale log2(e), or 1
  T unit = 1;                         ///< of scores, in base-2 logarithms
  KeyChunks chunks;
};

/// Columns [begin, begin + width) of the rows of a (batch, key head), in T. `to`: (rows x padded_width(width)).
template <class T, class S>
void pack_rows(const FewPlan<T, S>& plan, const Array4<const S>& array, int64_t batch, int64_t key_head, FewDot columns,
               T factor, T* to);

/// Keys of a block that lie together: all of it, or what one page holds of it.
struct FewPiece {
  int64_t first = 0, count = 0;  ///< first: in the block
  FewArray keys, values;
};

/// The scores of one block of keys at a time, for all rows of one (batch, key head).
template <class T, class S>
class FewTile {
 public:
  FewTile(const FewPlan<T, S>& plan, Arena& arena);

  void begin(int64_t batch, int64_t key_head);
  /// Multiplies the dots of the block and runs the program on it. `next`: the block after it, or null.
  void enter(const KeyBlock& block, const KeyBlock* next);

  const T* queries(size_t dot) const { return queries_[dot]; }  ///< packed rows
  FewRow<T> row(int64_t r) const { return view_[r]; }
  const std::vector<FewPiece>& pieces() const { return pieces_; }
  FewArray keys() const { return pieces_.front().keys; }  ///< of a block that lies together
  FewArray values() const { return pieces_.front().values; }
  /// What to fetch while the block's values are read: the next block's keys.
  FewAhead after_values(size_t piece = 0) const {
    return ahead(piece + 1 < pieces_.size() ? pieces_[piece + 1].values : next_keys_, plan_.call.Dv);
  }
  FewAhead after_keys(size_t piece = 0) const {
    return ahead(piece + 1 < pieces_.size() ? pieces_[piece + 1].keys : values(), plan_.call.Dh);
  }
  bool masked() const { return block_.masked; }
  const KeyBlock& block() const { return block_; }
  /// d score / d dot and d weight / d dot of a row; null for zero.
  const T* score_slope(size_t dot, int64_t r) const { return slope(dot, r, true); }
  const T* weight_slope(size_t dot, int64_t r) const { return slope(dot, r, false); }
  bool runs_program() const { return !plan_.plain || block_.masked; }
  bool keeps(int64_t r, int64_t j) const { return view_[r].keep == nullptr || view_[r].keep[j] != 0; }
  bool counts(int64_t r, int64_t j) const {
    return view_[r].counted == nullptr ? keeps(r, j) : view_[r].counted[j] != 0;
  }

 private:
  void multiply();
  void run_programs();
  FewArray array_of(const Array4<const S>& array, int64_t first, int64_t count, int64_t width, T* copy) const;
  void cut_into_pieces();
  FewAhead ahead(const FewArray& next, int64_t width) const;
  const T* slope(size_t dot, int64_t r, bool score) const;

  const FewPlan<T, S>& plan_;
  int64_t batch_ = 0, key_head_ = 0;
  KeyBlock block_;
  std::vector<FewPiece> pieces_;
  FewArray next_keys_;
  T *key_copy_ = nullptr, *value_copy_ = nullptr;
  std::vector<T*> queries_;                                       // of each dot
  std::vector<T*> scores_, head_scores_;                          // of each dot, (rows x kLanes)
  std::vector<std::unique_ptr<TileEvaluator<T>>> open_, masked_;  // of each head of the group
  std::vector<char> steps_begun_;                                 // of each evaluator, open ones first
  FewRow<T> view_[kFewRows];
};

}  // namespace regard::kernels
