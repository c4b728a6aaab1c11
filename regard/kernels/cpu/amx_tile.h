#pragma once

/// What the drivers of bfloat16 attention and the source compiled for AMX share: plain data and a table of functions.
///
/// A *tile* is what one tile register holds: 16 rows of 64 bytes, kept in memory as 1 KiB without gaps. One
/// instruction multiplies 16 x 32 bf16 by 32 x 16 bf16 into 16 x 16 float:
///
///     C[i][j] += sum_d A[i][d] B[d][j]       A rows in order; B as [d / 2][j][d % 2], *pairs* of depth side by side
///
/// A score tile is transposed, keys in rows and queries in columns, so that whatever belongs to one query (maximum,
/// sum, log-sum-exp) is one lane of a vector and no sum runs across a vector.
///
/// Only <cstdint> may be included here; see tile.h.
#include <cstdint>

namespace regard::kernels {

constexpr int64_t kTile = 16;       ///< rows of a tile, and columns of a float tile
constexpr int64_t kTileDepth = 32;  ///< bf16 in a row of a tile
constexpr int64_t kTileBytes = 1024;

/// c (rows x columns tiles of floats) = or += a (rows x depth tiles) b (depth x columns tiles). Strides in bytes.
struct TileProduct {
  const void* a = nullptr;
  int64_t a_row = 64;  ///< between the 16 rows of one tile: a may be read in place
  int64_t a_tile = 0, a_depth = 0;
  const void* b = nullptr;
  int64_t b_tile = 0, b_depth = 0;
  float* c = nullptr;
  int64_t c_row = 0, c_column = 0;  ///< from tile to tile
  int64_t rows = 0, columns = 0, depth = 0;
  bool add = false;
};

/// How an array X of bf16 becomes tiles.
enum class Packing : uint8_t {
  rows,          ///< A tiles of X: 16 rows x 32 columns in order
  across,        ///< B tiles of X^T: 16 rows x 32 columns, pairs of columns side by side, rows in lanes
  pairs,         ///< B tiles of X: 32 rows x 16 columns, pairs of rows side by side, columns in lanes
  pairs_across,  ///< A tiles of X^T: 16 columns x 32 rows
};

struct TilePack {
  Packing packing = Packing::rows;
  const uint16_t* data = nullptr;
  int64_t row = 0, column = 0;    ///< strides in elements
  int64_t rows = 0, columns = 0;  ///< present; the tiles are filled up with zeros
  bool negate = false;
  char* out = nullptr;
  int64_t row_tile = 0, column_tile = 0;  ///< bytes from tile to tile along the rows and the columns of X
};

/// 16 queries of one head while the forward runs.
struct PanelState {
  float maximum[kTile];  ///< of the dots so far (not scaled)
  float sum[kTile];      ///< of exp(score - maximum)
};

/// Absorbs a block of keys: the dots become weights exp(score - maximum) in bf16, as B tiles in the same memory.
struct PanelAbsorb {
  float* dots = nullptr;  ///< [keys][16 queries]
  int64_t keys = 0;       ///< a multiple of kTileDepth
  int64_t open = 0;       ///< the first `open` keys, an even number, are seen by all 16 queries
  int32_t limit[kTile];   ///< query l sees the keys below limit[l]
  float scale = 0;        ///< >= 0, of the dots, times log2(e)
  PanelState* state = nullptr;
  float* output = nullptr;  ///< [width][16 queries], rescaled when a maximum moves; null before the first block
  int64_t width = 0;
  const TileProduct* beside = nullptr;  ///< a product of other memory, worked off in between; or null
};

/// Chain rule on keys x 32 queries of one head: with p = 2^(scale s - lse) and ds = factor p (dp - delta), writes p
/// and ds in bf16.
struct PairChain {
  const float* dots = nullptr;  ///< s: two panels [keys][16 queries], keys * 64 bytes apart
  const float* dp = nullptr;    ///< <grad_o, v>, alike
  int64_t keys = 0;             ///< a multiple of kTileDepth
  int64_t open = 0;             ///< as in PanelAbsorb, for all 32 queries
  int32_t limit[2 * kTile];
  float scale = 0, factor = 0;
  const float* lse = nullptr;        ///< base 2
  const float* delta = nullptr;      ///< rowsum(grad_o o) - grad_lse
  char *p = nullptr, *ds = nullptr;  ///< A tiles (16 keys x 32 queries), row_tile bytes apart
  int64_t row_tile = 0;
  char* ds_pairs = nullptr;  ///< B tiles (32 keys x 16 queries) one after another; `panel` bytes to the other panel
  int64_t panel = 0;
};

/// out[l][d] = or += factor[l] sum_p panels_p[d][l] for `count` <= 16 queries.
struct PanelOut {
  const float* panel = nullptr;  ///< [width][16 queries]
  int64_t parts = 1, part = 0;   ///< how many panels are added, in order; floats from one to the next
  int64_t width = 0, count = 0;
  const float* factor = nullptr;  ///< [16]
  uint16_t* bf16 = nullptr;       ///< written: strides in elements
  int64_t row = 0, column = 0;
  float* floats = nullptr;  ///< or added to: contiguous rows of `width`
};

/// out[r] = sum_c a[r][c] b[r][c], strides in elements.
struct RowDots {
  const uint16_t *a = nullptr, *b = nullptr;
  int64_t a_row = 0, a_column = 0, b_row = 0, b_column = 0;
  int64_t rows = 0, columns = 0;
  float* out = nullptr;
};

/// What the source compiled for AMX provides. Tiles are used between `begin` and `end` alone, on one thread.
struct AmxKernels {
  void (*begin)();
  void (*end)();
  void (*multiply)(const TileProduct&);
  void (*pack)(const TilePack&);
  bool (*finite)(const uint16_t* data, int64_t row, int64_t column, int64_t rows, int64_t columns);
  void (*row_dots)(const RowDots&);
  void (*absorb)(const PanelAbsorb&);
  void (*chain)(const PairChain&);
  void (*write)(const PanelOut&);
};

/// Null where the compiler knows no AMX.
const AmxKernels* amx_kernels();

}  // namespace regard::kernels
