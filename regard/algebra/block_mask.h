#pragma once

#include <cstdint>
#include <vector>

#include "regard/algebra/interval.h"

namespace regard {

/// Which (query block, key block) tiles of one (batch, head) hold a pair, by interval analysis of `keep`:
/// never materializes M x N.
struct BlockMask {
  int64_t query_block = 0, key_block = 0;
  int64_t rows = 0, columns = 0;    ///< blocks: ceil(M / query_block), ceil(N / key_block)
  std::vector<Truth> truth;         ///< [rows][columns]
  Truth at(int64_t r, int64_t c) const { return truth[static_cast<size_t>(r * columns + c)]; }
};

/// A tile is decided by bounds of `keep` over it and, while these leave it open, over its parts down to single pairs
/// for a bounded effort: never and always are certain, and a tile that is neither may only be called sometimes.
/// `whole` gives batch, head, lengths and offset; its row and column ranges are ignored.
BlockMask block_mask(const Expr& keep, const Tile& whole, int64_t query_block, int64_t key_block,
                     const CaptureRange& captures);

}  // namespace regard
