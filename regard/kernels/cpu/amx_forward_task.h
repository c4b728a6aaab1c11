#pragma once

#include <vector>

#include "regard/kernels/cpu/amx_call.h"
#include "regard/kernels/cpu/arena.h"

/// One task of the forward pass: some queries of one (batch, key head) against all keys that they see.
namespace regard::kernels {

/// Keys a block. O^T moves through the tiles once a block: 128 keys were 4 to 15 % slower, 64 keys up to 20 %, 512 no
/// faster. S^T of 32 queries is then 32 KiB.
constexpr int64_t kBlockKeys = 256;
/// Score blocks of neighboring tiles: one becomes the output, one the weights, one is multiplied.
constexpr size_t kBuffers = 3;
/// Pairs of panels a task: V^T is packed for 512 queries at once, 4 to 8 % of their work.
constexpr int64_t kTaskTiles = 16;
/// Heads of a group that share a task, K and V; more would leave each too few queries.
constexpr int64_t kTaskHeads = 8;
/// Tasks are cut smaller until there are this many (two for each of 16 cores) or they are short of `kLeastSpan`.
constexpr int64_t kEnoughTasks = 32;
/// Queries a task at least when there are too few tasks: below, packing V^T costs more than 15 %.
constexpr int64_t kLeastSpan = 128;

/// How the queries of a call are cut.
struct AmxForwardPlan {
  explicit AmxForwardPlan(const AmxCall& call);
  int64_t spans() const { return ceil_div(queries, span); }
  int64_t tasks() const { return spans() * call.B * call.Hk * head_sets; }

  const AmxCall& call;
  AmxReach reach;
  int64_t group, heads, head_sets, queries, span;
};

/// Up to 32 queries of one head.
struct QueryTile {
  int64_t head = 0, first = 0, count = 0, panels = 0;
  char* q = nullptr;        ///< B tiles [panel][Dh / 32]
  float* output = nullptr;  ///< O^T [panel][Dv][16 queries]
  PanelState* state = nullptr;
  // of the block of keys at hand:
  int64_t seen = 0, keys = 0;  ///< by the last query; rounded up to whole tiles
  float* scores = nullptr;     ///< S^T [panel][keys][16 queries], then P^T
  int32_t limit[kPanelPair];   ///< query l sees the keys below limit[l]
};

class AmxForwardTask {
 public:
  explicit AmxForwardTask(const AmxForwardPlan& plan);
  void run(int64_t batch, int64_t key_head, int64_t head_set, int64_t span);

 private:
  int64_t output_floats() const { return v_tiles_ * kTile * kTile; }
  void place_tiles(int64_t head_set, int64_t first);
  void start(QueryTile& tile);
  void enter_block(int64_t key, int64_t count);
  void absorb_block();
  void place(QueryTile& tile, float* scores);
  void absorb(QueryTile& tile, const QueryTile* before, const QueryTile* after);

  TileProduct score(const QueryTile& tile) const;
  TileProduct weigh(const QueryTile& tile, int64_t keys) const;
  /// Whether a product over all of the tile's keys could let NaN or infinity of V through a hidden pair.
  bool needs_care(const QueryTile& tile) const { return !v_finite_ && tile.limit[0] < tile.keys; }
  void weigh_carefully(const QueryTile& tile);
  void finish(const QueryTile& tile);

  const AmxForwardPlan& plan_;
  const AmxCall& call_;
  const AmxKernels& kernels_;
  const int64_t q_depth_, v_tiles_, block_;
  std::vector<QueryTile> tiles_;
  size_t used_ = 0;
  std::vector<QueryTile*> active_;  ///< tiles that see the block
  float* scores_ = nullptr;         ///< of the tiles before, at and after
  char *keys_room_ = nullptr, *v_ = nullptr;
  int64_t batch_ = 0, key_head_ = 0, last_query_ = 0, key_ = 0;
  RowTiles keys_;
  bool v_finite_ = true;
};

}  // namespace regard::kernels
