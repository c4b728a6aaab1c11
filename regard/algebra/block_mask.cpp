#include "regard/algebra/block_mask.h"

#include <algorithm>
#include <array>
#include <string>

#include "regard/base/error.h"

namespace regard {
namespace {

/// Bounds taken per tile that its own bounds leave open. A tile that really is mixed shows a kept and a hidden pair
/// within a few; 512 decide every tile of 16 x 16 pair by pair, and cost a fraction of a millisecond.
constexpr int kEffort = 512;

class Search {
 public:
  Search(const Expr& keep, const Tile& whole, const CaptureRange& captures, BlockMask& mask)
      : analysis_(keep), whole_(whole), captures_(captures), mask_(mask) {}

  /// Decides the blocks [r0, r1) x [c0, c1): together when the bounds of their union do, else half by half.
  void fill(int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    if (r0 >= r1 || c0 >= c1) return;
    Tile tile = whole_;
    tile.row_begin = r0 * mask_.query_block;
    tile.row_end = std::min(r1 * mask_.query_block, whole_.queries);
    tile.column_begin = c0 * mask_.key_block;
    tile.column_end = std::min(c1 * mask_.key_block, whole_.keys);
    const Truth truth = analysis_.truth(tile, captures_);
    if (truth != Truth::sometimes || (r1 - r0 == 1 && c1 - c0 == 1)) {
      const Truth found = truth == Truth::sometimes ? refine(tile) : truth;
      for (int64_t r = r0; r < r1; ++r) {
        std::fill_n(mask_.truth.begin() + static_cast<ptrdiff_t>(r * mask_.columns + c0), c1 - c0, found);
      }
      return;
    }
    if (r1 - r0 >= c1 - c0) {
      const int64_t middle = (r0 + r1) / 2;
      fill(r0, middle, c0, c1);
      fill(middle, r1, c0, c1);
    } else {
      const int64_t middle = (c0 + c1) / 2;
      fill(r0, r1, c0, middle);
      fill(r0, r1, middle, c1);
    }
  }

 private:
  /// What was seen of one tile. Once a kept and a hidden pair, or an undecidable pair, was met, it is sometimes.
  struct Seen {
    bool kept = false, hidden = false, undecided = false;
    bool mixed() const { return undecided || (kept && hidden); }
  };

  void note(Truth truth, Seen& seen) const {
    seen.kept = seen.kept || truth == Truth::always;
    seen.hidden = seen.hidden || truth == Truth::never;
  }

  void look_at_corners(const Tile& tile, Seen& seen) {
    for (const int64_t row : {tile.row_begin, tile.row_end - 1}) {
      for (const int64_t column : {tile.column_begin, tile.column_end - 1}) {
        Tile pair = tile;
        pair.row_begin = row, pair.row_end = row + 1, pair.column_begin = column, pair.column_end = column + 1;
        const Truth truth = analysis_.truth(pair, captures_);
        seen.undecided = seen.undecided || truth == Truth::sometimes;
        note(truth, seen);
        if (seen.mixed()) return;
      }
    }
  }

  /// Halves the open parts of the tile, breadth first, until they are decided or mixed.
  Truth refine(const Tile& tile) {
    Seen seen;
    look_at_corners(tile, seen);
    std::vector<Tile> open{tile};
    int effort = kEffort;
    for (size_t next = 0; next < open.size() && !seen.mixed(); ++next) {
      for (const Tile& half : halves(open[next])) {
        if (--effort < 0) return Truth::sometimes;
        const Truth truth = analysis_.truth(half, captures_);
        note(truth, seen);
        if (truth != Truth::sometimes) continue;
        const bool single = half.row_end - half.row_begin == 1 && half.column_end - half.column_begin == 1;
        seen.undecided = seen.undecided || single;
        open.push_back(half);
      }
    }
    if (seen.mixed()) return Truth::sometimes;
    return seen.kept ? Truth::always : Truth::never;
  }

  static std::array<Tile, 2> halves(const Tile& tile) {
    std::array<Tile, 2> parts{tile, tile};
    const int64_t rows = tile.row_end - tile.row_begin, columns = tile.column_end - tile.column_begin;
    if (rows >= columns) {
      parts[0].row_end = parts[1].row_begin = tile.row_begin + rows / 2;
    } else {
      parts[0].column_end = parts[1].column_begin = tile.column_begin + columns / 2;
    }
    return parts;
  }

  Analysis analysis_;
  const Tile& whole_;
  const CaptureRange& captures_;
  BlockMask& mask_;
};

}  // namespace

BlockMask block_mask(const Expr& keep, const Tile& whole, int64_t query_block, int64_t key_block,
                     const CaptureRange& captures) {
  if (keep.type() != Type::boolean) fail("block_mask", "a keep of type bool", name_of(keep.type()));
  if (query_block < 1 || key_block < 1) {
    fail("block_mask", "blocks of at least 1 query and 1 key",
         std::to_string(query_block) + " and " + std::to_string(key_block));
  }
  if (whole.queries < 0 || whole.keys < 0) {
    fail("block_mask", "lengths of at least 0", std::to_string(whole.queries) + " and " + std::to_string(whole.keys));
  }
  BlockMask mask;
  mask.query_block = query_block;
  mask.key_block = key_block;
  mask.rows = (whole.queries + query_block - 1) / query_block;
  mask.columns = (whole.keys + key_block - 1) / key_block;
  mask.truth.assign(static_cast<size_t>(mask.rows * mask.columns), Truth::sometimes);
  Search(keep, whole, captures, mask).fill(0, mask.rows, 0, mask.columns);
  return mask;
}

}  // namespace regard
