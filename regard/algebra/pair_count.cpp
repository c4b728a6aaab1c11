#include "regard/algebra/pair_count.h"

namespace regard {
namespace {

class Count {
 public:
  Count(const Expr& keep, const CaptureRange& captures, int64_t effort)
      : analysis_(keep), captures_(captures), effort_(effort) {}

  /// The pairs of one tile; beyond the effort all of an undecided tile.
  double pairs(const Tile& tile) {
    const int64_t rows = tile.row_end - tile.row_begin, columns = tile.column_end - tile.column_begin;
    if (rows <= 0 || columns <= 0) return 0;
    const double all = static_cast<double>(rows) * static_cast<double>(columns);
    const Truth truth = analysis_.truth(tile, captures_);
    if (truth != Truth::sometimes) return truth == Truth::always ? all : 0;
    if (--effort_ < 0 || (rows == 1 && columns == 1)) {
      exact = false;
      return all;
    }
    Tile first = tile, second = tile;
    if (rows >= columns) {
      first.row_end = second.row_begin = tile.row_begin + rows / 2;
    } else {
      first.column_end = second.column_begin = tile.column_begin + columns / 2;
    }
    return pairs(first) + pairs(second);
  }

  bool exact = true;

 private:
  Analysis analysis_;
  const CaptureRange& captures_;
  int64_t effort_;
};

}  // namespace

PairCount count_pairs(const Expr& keep, const Tile& whole, const CaptureRange& captures, int64_t effort) {
  const Dependence varies = dependence(keep);
  const int64_t batches = varies.batch ? whole.batches : 1, heads = varies.head ? whole.heads : 1;
  Count count(keep, captures, effort);
  double pairs = 0;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      Tile tile = whole;
      tile.batch = b, tile.head = h;
      tile.row_begin = tile.column_begin = 0;
      tile.row_end = whole.queries, tile.column_end = whole.keys;
      pairs += count.pairs(tile);
    }
  }
  const double shared = (varies.batch ? 1.0 : static_cast<double>(whole.batches)) *
                        (varies.head ? 1.0 : static_cast<double>(whole.heads));
  return {pairs * shared, count.exact};
}

}  // namespace regard
