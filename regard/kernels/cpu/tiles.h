#pragma once

#include <vector>

#include "regard/kernels/cpu/arena.h"
#include "regard/kernels/cpu/evaluator.h"
#include "regard/kernels/cpu/plan.h"
#include "regard/kernels/cpu/tile_map.h"

namespace regard::kernels {

/// packed[d][l] = array[l][d] for `count` rows of a side, zero in the lanes beyond: (width x kLanes).
template <class T>
void pack_lanes(T* packed, const T* array, int64_t row, int64_t column, int64_t count, int64_t width);

/// array[l][d] += sums[d][l]: a transposed sum added to contiguous gradients.
template <class T>
void add_lanes(T* array, int64_t row, const T* sums, int64_t count, int64_t width);

/// The tile of one (batch, head) that a task works on: kLanes lanes against blocks of steps. Holds the packed lane
/// side of every dot, the score tiles of one block, and the two programs.
template <class T>
class Tiles {
 public:
  Tiles(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Side lanes, Arena& arena);

  /// Packs the lane side of every dot for lanes [tile kLanes, ...) of (batch, head).
  void begin(int64_t batch, int64_t head, int64_t tile);

  /// Goes to a block of steps: multiplies the dots and prepares the program. False when the block holds no pair.
  bool enter(int64_t block);

  /// Runs the program over one chunk, steps [first, first + count) of the block.
  void run(int64_t first, int64_t count) { program_->run(first, count, scores_.data()); }

  TileEvaluator<T>& program() { return *program_; }
  bool masked() const { return program_ == &masked_; }
  T* scores(size_t dot) const { return scores_[dot]; }
  const SideArray<T>& lane_side(size_t dot) const { return by_query_ ? plan_.dots[dot].q : plan_.dots[dot].k; }
  const SideArray<T>& step_side(size_t dot) const { return by_query_ ? plan_.dots[dot].k : plan_.dots[dot].q; }

  int64_t batch = 0, head = 0;
  int64_t first_lane = 0, count = 0, lanes = 0;  ///< of the tile; lanes: count rounded up to kLaneUnit
  int64_t first_step = 0, steps = 0;             ///< of the block
  int64_t blocks() const { return map_.step_blocks(); }

 private:
  const Plan<T>& plan_;
  const TileMap& map_;
  const bool by_query_;
  TileEvaluator<T> open_, masked_;
  TileEvaluator<T>* program_ = nullptr;
  std::vector<T*> packed_, scores_;
  int64_t tile_ = 0;
};

/// c (width x lanes) += or = (factor) array^T tile over the steps of a block, where `array` is the step side. Pairs
/// outside `mask` (null: none is) contribute nothing even if the array holds NaN there.
template <class T>
void accumulate(T* c, const T* array, int64_t row, int64_t column, int64_t width, const T* tile, const int32_t* mask,
                int64_t steps, int64_t lanes, const T* factor);

}  // namespace regard::kernels
