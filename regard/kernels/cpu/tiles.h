#pragma once

#include <numbers>
#include <optional>
#include <vector>

#include "regard/kernels/cpu/arena.h"
#include "regard/kernels/cpu/evaluator.h"
#include "regard/kernels/cpu/plan.h"
#include "regard/kernels/cpu/tile_map.h"

namespace regard::kernels {

/// packed (width x lanes) = scale times the transpose of `count` rows, zero in the lanes beyond.
template <class T>
void pack_rows(T* packed, const T* array, int64_t row, int64_t column, int64_t count, int64_t width, T scale);

/// The tile that a task works on: queries of one (batch, head) in the lanes against one block of keys. Holds the score
/// tiles of the block and the two programs, with and without masks.
template <class T>
class Tiles {
 public:
  Tiles(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Arena& arena);

  /// Goes to a tile of queries of (batch, head).
  void begin(int64_t batch, int64_t head, int64_t query_tile);

  /// Goes to a block of keys. False when the tile holds no pair of it.
  bool enter(int64_t block);

  /// S^T = K Q^T of one dot, from its packed queries; raises `maximum` of the lanes unless null.
  void multiply(size_t dot, const T* packed, T* maximum) { multiply(plan_.dots[dot].k, packed, scores_[dot], maximum); }
  /// to (keys x queries) = the block's rows of a key side times packed columns (width x queries).
  void multiply(const SideArray<T>& keys, const T* packed, T* to, T* maximum = nullptr);

  /// to (width x queries) by `mode` and `factor` of Product: the block's rows of a key side, turned, times a tile (keys
  /// x queries). Pairs outside a mask (null: none is) add nothing, even where the rows hold NaN.
  void accumulate(const SideArray<T>& keys, const T* tile, const int32_t* mask, T* to, typename Product<T>::Mode mode,
                  const T* factor = nullptr);

  /// Whether the products are the scores of all pairs.
  bool plain() const { return plan_.plain && !masked(); }
  bool masked() const { return mapped_.kind == TileKind::masked; }

  /// Whether some pair of the chunk that begins at this step is hidden.
  bool hides(int64_t first) const { return masked() && mapped_.masked((first_key - block_begin + first) / kChunk); }
  /// Whether the mask is a band (causal, window): then it needs no program.
  bool banded() const { return plan_.band.has_value(); }
  /// The band's mask of one chunk.
  View<int32_t> band(int64_t first, int64_t steps);
  /// Runs the program over one chunk, steps [first, first + count) of the block.
  void run(int64_t first, int64_t count);
  TileEvaluator<T>& program() { return *program_; }  ///< that ran last
  T* scores(size_t dot) const { return scores_[dot]; }

  /// Whether scores are in base 2: plain ones of a normalizer of exponentials.
  bool base2() const { return plan_.plain && plan_.exponential; }
  /// What packed queries are multiplied by, what turns their scores into base 2, and into natural ones.
  T query_scale() const {
    if (base2()) return static_cast<T>(plan_.space.scale * std::numbers::log2e);
    return plan_.plain ? static_cast<T>(plan_.space.scale) : T(1);
  }
  T unit() const { return base2() ? T(1) : std::numbers::log2e_v<T>; }
  T natural() const { return base2() ? std::numbers::ln2_v<T> : T(1); }

  /// Copies the mask of a chunk to rows kLanes apart; no mask: all pairs.
  void copy_mask(int32_t* to, View<int32_t> from, int64_t chunk_steps) const;

  int64_t batch = 0, head = 0;
  int64_t first_query = 0, count = 0, lanes = 0;  ///< of the tile; lanes: count rounded up to kLaneUnit
  int64_t block = 0, block_begin = 0;             ///< of the keys
  int64_t first_key = 0, steps = 0;               ///< of the part of the block that holds pairs
  const TileMap& map() const { return map_; }

 private:
  const Plan<T>& plan_;
  const BoundPrograms& bound_;
  const TileMap& map_;
  Arena& arena_;
  std::optional<TileEvaluator<T>> open_, masked_;  // made when first needed: a plain call needs none
  TileEvaluator<T>* program_ = nullptr;
  bool open_ready_ = false, masked_ready_ = false;  // steps of this block
  std::vector<T*> scores_;
  int32_t* band_ = nullptr;                         // mask of one chunk
  alignas(64) int32_t low_[kLanes], high_[kLanes];  // keys of each lane
  MappedTile mapped_;
  int64_t tile_ = 0;
};

/// Whether blocks of rows hold finite values alone, looked at once a block.
template <class T>
class FiniteBlocks {
 public:
  void reset(int64_t blocks) { known_.assign(static_cast<size_t>(blocks), -1); }
  bool at(int64_t block, const T* array, int64_t rows, int64_t width, int64_t row, int64_t column) {
    int8_t& known = known_[static_cast<size_t>(block)];
    if (known < 0) known = primitives<T>().finite(array, rows, width, row, column);
    return known != 0;
  }

 private:
  std::vector<int8_t> known_;
};

}  // namespace regard::kernels
