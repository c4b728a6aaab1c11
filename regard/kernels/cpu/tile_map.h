#pragma once

#include <vector>

#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/program_cache.h"

namespace regard::kernels {

/// Whether a tile holds no pair, some, or all its pairs, kept and counted.
enum class TileKind : uint8_t { skipped, masked, open };

struct MappedTile {
  TileKind kind = TileKind::open;
  uint8_t first_chunk = 0, end_chunk = kSteps / kChunk;  ///< chunks of steps outside hold no pair
};

/// The kinds of all tiles, by interval analysis of keep and counted; kept once for all batches (heads) when they do
/// not matter. Tiles are kLanes of the side `lanes` by kSteps of the other.
class TileMap {
 public:
  TileMap(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures, Side lanes);
  MappedTile at(int64_t batch, int64_t head, int64_t lane_tile, int64_t step_block) const;
  int64_t lane_tiles() const { return lane_tiles_; }
  int64_t step_blocks() const { return step_blocks_; }

 private:
  int64_t lane_tiles_ = 0, step_blocks_ = 0;
  bool by_batch_ = false, by_head_ = false;
  int64_t heads_ = 1;
  std::vector<MappedTile> tiles_;  ///< [batch][head][lane tile][step block], empty when every tile is open
};

}  // namespace regard::kernels
