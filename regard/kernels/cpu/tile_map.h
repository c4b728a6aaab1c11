#pragma once

#include <vector>

#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/cut.h"
#include "regard/kernels/cpu/program_cache.h"
#include "regard/kernels/cpu/tile_layout.h"

namespace regard::kernels {

/// How the pairs of one head are cut into tiles: queries are the lanes, keys the steps.
struct Cuts {
  Cut queries, keys;
};

/// The tiles of the forward pass: of even size, so that no narrow tile is left (197 queries are 64 + 48 + 48 + 37); or
/// inside the blocks or sequences of a layout.
Cuts forward_cuts(int64_t queries, int64_t keys, bool masked, const TileLayout& layout);
/// Those of the backward pass.
Cuts backward_cuts(int64_t queries, int64_t keys, bool masked, const TileLayout& layout);

static_assert(kSteps / kChunk <= 16, "a bit of MappedTile for each chunk");

/// Whether a tile holds no pair, some, or all its pairs, kept and counted.
enum class TileKind : uint8_t { skipped, masked, open };

struct MappedTile {
  TileKind kind = TileKind::open;
  uint8_t first_chunk = 0, end_chunk = kSteps / kChunk;  ///< chunks of steps outside hold no pair
  uint16_t masked_chunks = 0;                            ///< a bit for each chunk that needs its mask
  bool masked(int64_t chunk) const { return (masked_chunks >> chunk & 1) != 0; }
};

/// The kinds of all tiles, by their layout and by interval analysis of keep and counted; kept once for all batches
/// (heads) when they do not matter. Ranges of keys that hold no pair, or all, are found by halving: a window costs its
/// own tiles alone.
class TileMap {
 public:
  /// The cuts are those of the layout.
  TileMap(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures, const Cuts& cuts,
          const TileLayout& layout);
  MappedTile at(int64_t batch, int64_t head, int64_t query_tile, int64_t key_block) const {
    if (rows_.empty()) return {};
    const Row& row = rows_[static_cast<size_t>(row_of(batch, head, query_tile))];
    if (key_block < row.first || key_block >= row.end) return {TileKind::skipped, 0, 0, 0};
    return row.tiles[static_cast<size_t>(key_block - row.first)];
  }
  /// The key blocks outside [first, end) hold no pair of this tile's queries.
  int64_t first_block(int64_t batch, int64_t head, int64_t query_tile) const {
    return rows_.empty() ? 0 : rows_[static_cast<size_t>(row_of(batch, head, query_tile))].first;
  }
  int64_t end_block(int64_t batch, int64_t head, int64_t query_tile) const {
    return rows_.empty() ? cuts_.keys.parts : rows_[static_cast<size_t>(row_of(batch, head, query_tile))].end;
  }
  const Cuts& cuts() const { return cuts_; }
  bool by_batch() const { return by_batch_; }

 private:
  struct Row {
    int64_t first = 0, end = 0;
    std::vector<MappedTile> tiles;
  };
  int64_t row_of(int64_t batch, int64_t head, int64_t query_tile) const {
    return ((by_batch_ ? batch : 0) * heads_ + (by_head_ ? head : 0)) * cuts_.queries.parts + query_tile;
  }

  Cuts cuts_;
  bool by_batch_ = false, by_head_ = false;
  int64_t heads_ = 1;
  std::vector<Row> rows_;  ///< [batch][head][query tile], empty when every tile is open
};

}  // namespace regard::kernels
