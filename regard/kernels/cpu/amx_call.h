#pragma once

#include <algorithm>
#include <numbers>

#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/amx_tile.h"
#include "regard/kernels/cpu/rounding.h"

/// What the drivers of bfloat16 attention on AMX share.
namespace regard::kernels {

using AmxCall = Attention<float, bfloat16>;
using AmxGradient = AttentionGradient<float, bfloat16>;

/// Queries are worked on by two panels of 16, so that the products have 2 x 2 accumulators.
constexpr int64_t kPanelPair = 2 * kTile;

/// Which pairs exist: query i sees the keys [0, seen(i)).
struct AmxReach {
  explicit AmxReach(const AmxCall& call);

  int64_t seen(int64_t query) const { return causal ? std::clamp<int64_t>(query + offset + 1, 0, keys) : keys; }
  /// seen(first + l) - key for the lanes l < count, at most `most`; the lanes beyond are as the last one.
  void limits(int32_t* limit, int64_t lanes, int64_t first, int64_t count, int64_t key, int64_t most) const;

  bool causal = false;
  int64_t offset = 0;
  int64_t keys = 0;         ///< the keys from here on are seen by no query
  int64_t first_query = 0;  ///< the queries before see no key
};

/// The first element of a row.
inline const uint16_t* bits_at(const Array4<const bfloat16>& x, int64_t batch, int64_t head, int64_t row) {
  return reinterpret_cast<const uint16_t*>(x.data + batch * x.batch + head * x.head + row * x.row);
}

/// A pack of rows of an array, to be completed.
inline TilePack pack_of(const Array4<const bfloat16>& x, const uint16_t* data, int64_t rows, int64_t columns) {
  TilePack pack;
  pack.data = data;
  pack.row = x.row;
  pack.column = x.column;
  pack.rows = rows;
  pack.columns = columns;
  return pack;
}

inline float to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof value);
  return value;
}

/// A block of rows as A tiles, 16 rows x 32 columns: in place where rows are contiguous and fill whole tiles,
/// otherwise a packed copy.
struct RowTiles {
  const void* data = nullptr;
  int64_t row = 64, tile = 0, depth = 0;  ///< bytes: from row to row, from 16 rows to the next, from 32 columns

  /// Rows [first, first + count) of (batch, head), of `length` rows of `width` columns.
  static RowTiles of(const Array4<const bfloat16>& x, int64_t batch, int64_t head, int64_t first, int64_t count,
                     int64_t length, int64_t width, char* room);
  static int64_t bytes(int64_t count, int64_t width) {
    return round_up(count, kTileDepth) / kTile * ceil_div(width, kTileDepth) * kTileBytes;
  }
};

/// Whether a mask is query() >= key().
bool is_causal(const Expr& keep);

}  // namespace regard::kernels
