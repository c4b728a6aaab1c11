#include "regard/kernels/cpu/tile_map.h"

#include <algorithm>

#include "regard/base/parallel.h"

namespace regard::kernels {
namespace {

int64_t blocks_of(int64_t length, int64_t block) { return (length + block - 1) / block; }

/// The analysis of one row of tiles: some lanes of one (batch, head) against all blocks of steps.
class RowAnalysis {
 public:
  RowAnalysis(const PairExpressions& pairs, const PairSpace& space, const CaptureRange& ranges, Side lanes)
      : keep_(pairs.keep),
        counted_(pairs.counted),
        apart_(pairs.counted.pointer() != pairs.keep.pointer()),
        space_(space),
        ranges_(ranges),
        by_query_(lanes == Side::queries) {}

  void begin(int64_t batch, int64_t head, int64_t lane, int64_t lane_end) {
    batch_ = batch;
    head_ = head;
    lane_ = lane;
    lane_end_ = lane_end;
  }

  MappedTile map(int64_t step, int64_t end) {
    MappedTile mapped;
    const Truth found = truth(step, end);
    mapped.kind = found == Truth::never    ? TileKind::skipped
                  : found == Truth::always ? TileKind::open
                                           : TileKind::masked;
    mapped.end_chunk = static_cast<uint8_t>(blocks_of(end - step, kChunk));
    if (mapped.kind == TileKind::masked) trim(mapped, step, end);
    return mapped;
  }

 private:
  /// A causal tile, say, ends at its last query's key.
  void trim(MappedTile& mapped, int64_t step, int64_t end) {
    const auto never = [&](int64_t chunk) {
      return truth(step + chunk * kChunk, std::min(step + (chunk + 1) * kChunk, end)) == Truth::never;
    };
    while (mapped.end_chunk > mapped.first_chunk && never(mapped.end_chunk - 1)) --mapped.end_chunk;
    while (mapped.first_chunk < mapped.end_chunk && never(mapped.first_chunk)) ++mapped.first_chunk;
    if (mapped.first_chunk == mapped.end_chunk) mapped.kind = TileKind::skipped;
  }

  /// Of keep and counted together: never when both are, always when both are.
  Truth truth(int64_t step, int64_t end) {
    const Tile tile = by_query_ ? space_.tile(batch_, head_, lane_, lane_end_, step, end)
                                : space_.tile(batch_, head_, step, end, lane_, lane_end_);
    const Truth kept = keep_.truth(tile, ranges_);
    if (!apart_) return kept;
    return counted_.truth(tile, ranges_) == kept ? kept : Truth::sometimes;
  }

  Analysis keep_, counted_;
  const bool apart_;
  const PairSpace& space_;
  const CaptureRange& ranges_;
  const bool by_query_;
  int64_t batch_ = 0, head_ = 0, lane_ = 0, lane_end_ = 0;
};

}  // namespace

TileMap::TileMap(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures,
                 Side lanes) {
  const bool by_query = lanes == Side::queries;
  const int64_t lane_count = by_query ? space.queries : space.keys, step_count = by_query ? space.keys : space.queries;
  lane_tiles_ = blocks_of(lane_count, kLanes);
  step_blocks_ = blocks_of(step_count, kSteps);
  if (!pairs.masked()) return;
  const Dependence keep = dependence(pairs.keep), counted = dependence(pairs.counted);
  by_batch_ = keep.batch || counted.batch;
  by_head_ = keep.head || counted.head;
  heads_ = by_head_ ? space.heads : 1;
  const int64_t rows = (by_batch_ ? space.batches : 1) * heads_ * lane_tiles_;
  tiles_.resize(static_cast<size_t>(rows * step_blocks_));
  const CaptureRange ranges = capture_range(captures);
  parallel_for(rows, [&](int64_t row) {
    RowAnalysis analysis(pairs, space, ranges, lanes);
    const int64_t lane = row % lane_tiles_ * kLanes;
    analysis.begin(row / lane_tiles_ / heads_, row / lane_tiles_ % heads_, lane, std::min(lane + kLanes, lane_count));
    for (int64_t block = 0; block < step_blocks_; ++block) {
      const int64_t step = block * kSteps;
      tiles_[static_cast<size_t>(row * step_blocks_ + block)] = analysis.map(step, std::min(step + kSteps, step_count));
    }
  });
}

MappedTile TileMap::at(int64_t batch, int64_t head, int64_t lane_tile, int64_t step_block) const {
  if (tiles_.empty()) return {};
  const int64_t row = ((by_batch_ ? batch : 0) * heads_ + (by_head_ ? head : 0)) * lane_tiles_ + lane_tile;
  return tiles_[static_cast<size_t>(row * step_blocks_ + step_block)];
}

}  // namespace regard::kernels
