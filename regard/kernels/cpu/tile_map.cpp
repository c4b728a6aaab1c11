#include "regard/kernels/cpu/tile_map.h"

#include <algorithm>
#include <optional>

#include "regard/algebra/band.h"
#include "regard/base/parallel.h"

namespace regard::kernels {
namespace {

// Measured (AVX-512, D = 64 and 128): key blocks of 64 to 512 are within 2 percent of each other where nothing is
// masked, tiles of 64 queries 1 to 3 percent ahead of 48. A causal tile wastes what lies above its diagonal, so masked
// specs take smaller ones. The backward of open tiles gains 2 percent from 128 to 256 keys (dQ is added to less often),
// that of causal ones loses 5 to 10 (most of a block at the diagonal is cut off).
constexpr int64_t kMaskedQueries = 48;
constexpr int64_t kForwardKeys = 208, kMaskedForwardKeys = 128, kBackwardKeys = 256, kMaskedBackwardKeys = 128;
constexpr int64_t kKeyUnit = 8;  // rows of the register tile that is 48 lanes wide

Cuts cuts_of(int64_t queries, int64_t keys, bool masked, int64_t block, const TileLayout& layout) {
  const int64_t lanes = masked ? kMaskedQueries : kLanes;
  if (const BlockList* list = layout.blocks) {
    return {Cut::inside(queries, list->query_block(), kLaneUnit, kLanes),
            Cut::inside(keys, list->key_block(), kKeyUnit, block)};
  }
  if (const Sequences* sequences = layout.sequences) {
    return {Cut::between(sequences->query_starts, kLaneUnit, lanes),
            Cut::between(sequences->key_starts, kKeyUnit, block)};
  }
  return {Cut::at_most(queries, kLaneUnit, lanes), Cut::at_most(keys, kKeyUnit, block)};
}

/// The analysis of one row of tiles: some queries of one (batch, head) against all blocks of keys.
class RowAnalysis {
 public:
  RowAnalysis(const PairExpressions& pairs, const PairSpace& space, const CaptureRange& ranges, const Cut& keys)
      : apart_(pairs.counted.pointer() != pairs.keep.pointer()), space_(space), ranges_(ranges), keys_(keys) {
    if (!apart_) band_ = band_of(pairs.keep);
    if (band_) return;
    keep_.emplace(pairs.keep);
    counted_.emplace(pairs.counted);
  }

  void begin(int64_t batch, int64_t head, int64_t query, int64_t query_end) {
    batch_ = batch;
    head_ = head;
    query_ = query;
    query_end_ = query_end;
  }

  /// Those of the kept blocks of a list; tiles[0] is block 0, and what is not kept stays as it is.
  void map(const BlockList& list, MappedTile* tiles) {
    const int64_t row = query_ / list.query_block(), columns = ceil_div(keys_.length, list.key_block());
    const auto kept = [&](int64_t j) { return list.kept(batch_, head_, row, j); };
    for (int64_t j = 0, end; j < columns; j = end) {
      end = j + 1;
      if (!kept(j)) continue;
      const bool full = list.full(batch_, head_, row, j);
      while (end < columns && kept(end) && list.full(batch_, head_, row, end) == full) ++end;
      const int64_t first = j * keys_.pieces, last = std::min(end * keys_.pieces, keys_.parts);
      if (full) {
        for (int64_t block = first; block < last; ++block) tiles[block] = whole(block, TileKind::open);
      } else {
        map(first, last, tiles + first);
      }
    }
  }

  /// Those of the keys of the same sequence, likewise.
  void map(const Sequences& sequences, MappedTile* tiles) {
    const auto own = static_cast<size_t>(sequences.of_query(query_));
    const auto part = [&](int64_t key) {
      return std::lower_bound(keys_.begins->begin(), keys_.begins->end(), key) - keys_.begins->begin();
    };
    const int64_t first = part(sequences.key_starts[own]), end = part(sequences.key_starts[own + 1]);
    if (first < end) map(first, end, tiles + first);
  }

  /// tiles[block - first] for blocks in [first, end).
  void map(int64_t first, int64_t end, MappedTile* tiles) {
    const Truth found = truth(keys_.begin(first), keys_.end(end - 1));
    if (found == Truth::sometimes && end - first > 1) {
      const int64_t middle = first + (end - first) / 2;
      map(first, middle, tiles);
      map(middle, end, tiles + (middle - first));
      return;
    }
    for (int64_t block = first; block < end; ++block) {
      MappedTile& tile = tiles[block - first];
      tile = whole(block, found == Truth::never    ? TileKind::skipped
                          : found == Truth::always ? TileKind::open
                                                   : TileKind::masked);
      if (tile.kind == TileKind::masked) map_chunks(tile, keys_.begin(block), keys_.end(block));
    }
  }

 private:
  MappedTile whole(int64_t block, TileKind kind) const {
    MappedTile tile;
    tile.kind = kind;
    tile.end_chunk = static_cast<uint8_t>(ceil_div(keys_.end(block) - keys_.begin(block), kChunk));
    return tile;
  }

  void map_chunks(MappedTile& tile, int64_t key, int64_t end) {
    int64_t first = tile.end_chunk, last = 0;
    for (int64_t chunk = 0; chunk < tile.end_chunk; ++chunk) {
      const Truth found = truth(key + chunk * kChunk, std::min(key + (chunk + 1) * kChunk, end));
      if (found != Truth::always) tile.masked_chunks = static_cast<uint16_t>(tile.masked_chunks | 1u << chunk);
      if (found == Truth::never) continue;
      first = std::min(first, chunk);
      last = chunk + 1;
    }
    tile.first_chunk = static_cast<uint8_t>(first);
    tile.end_chunk = static_cast<uint8_t>(last);
    if (first >= last) tile.kind = TileKind::skipped;
  }

  /// Of keep and counted together: never when both are, always when both are.
  Truth truth(int64_t key, int64_t end) {
    if (band_) return truth_of_band(key, end);
    const Tile tile = space_.tile(batch_, head_, query_, query_end_, key, end);
    const Truth kept = keep_->truth(tile, ranges_);
    if (!apart_) return kept;
    return counted_->truth(tile, ranges_) == kept ? kept : Truth::sometimes;
  }

  /// By the range of key() - query().
  Truth truth_of_band(int64_t key, int64_t end) const {
    const int64_t least = key - (query_end_ - 1 + space_.query_offset), most = end - 1 - (query_ + space_.query_offset);
    if (most < band_->low || least > band_->high || key >= end) return Truth::never;
    return least >= band_->low && most <= band_->high ? Truth::always : Truth::sometimes;
  }

  std::optional<Band> band_;
  std::optional<Analysis> keep_, counted_;  // of other masks
  const bool apart_;
  const PairSpace& space_;
  const CaptureRange& ranges_;
  const Cut keys_;
  int64_t batch_ = 0, head_ = 0, query_ = 0, query_end_ = 0;
};

}  // namespace

Cuts forward_cuts(int64_t queries, int64_t keys, bool masked, const TileLayout& layout) {
  return cuts_of(queries, keys, masked, masked ? kMaskedForwardKeys : kForwardKeys, layout);
}

Cuts backward_cuts(int64_t queries, int64_t keys, bool masked, const TileLayout& layout) {
  return cuts_of(queries, keys, masked, masked ? kMaskedBackwardKeys : kBackwardKeys, layout);
}

TileMap::TileMap(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures,
                 const Cuts& cuts, const TileLayout& layout)
    : cuts_(cuts) {
  const BlockList* blocks = layout.blocks;
  const Sequences* sequences = layout.sequences;
  if ((blocks == nullptr && sequences == nullptr && !pairs.masked()) || cuts.keys.parts == 0) return;
  const Dependence keep = dependence(pairs.keep), counted = dependence(pairs.counted);
  by_batch_ = keep.batch || counted.batch || (blocks != nullptr && blocks->by_batch());
  by_head_ = keep.head || counted.head || (blocks != nullptr && blocks->by_head());
  heads_ = by_head_ ? space.heads : 1;
  rows_.resize(static_cast<size_t>((by_batch_ ? space.batches : 1) * heads_ * cuts.queries.parts));
  const CaptureRange ranges = capture_range(captures);
  constexpr int64_t kRowsOfTask = 16;  // a row is some microseconds, a task pays for two analyses and a buffer
  const int64_t rows = static_cast<int64_t>(rows_.size());
  parallel_for(ceil_div(rows, kRowsOfTask), [&](int64_t task) {
    RowAnalysis analysis(pairs, space, ranges, cuts.keys);
    std::vector<MappedTile> all(static_cast<size_t>(cuts.keys.parts));
    for (int64_t r = task * kRowsOfTask; r < std::min(rows, (task + 1) * kRowsOfTask); ++r) {
      const int64_t tile = r % cuts.queries.parts, head = r / cuts.queries.parts % heads_;
      analysis.begin(r / cuts.queries.parts / heads_, head, cuts.queries.begin(tile), cuts.queries.end(tile));
      std::fill(all.begin(), all.end(), MappedTile{TileKind::skipped});
      if (blocks != nullptr) {
        analysis.map(*blocks, all.data());
      } else if (sequences != nullptr) {
        analysis.map(*sequences, all.data());
      } else {
        analysis.map(0, cuts.keys.parts, all.data());
      }
      Row& row = rows_[static_cast<size_t>(r)];
      const auto exists = [](const MappedTile& mapped) { return mapped.kind != TileKind::skipped; };
      const auto first = std::find_if(all.begin(), all.end(), exists);
      const auto end = std::find_if(all.rbegin(), std::make_reverse_iterator(first), exists).base();
      row.first = first - all.begin();
      row.end = end - all.begin();
      row.tiles.assign(first, end);
    }
  });
}

}  // namespace regard::kernels
