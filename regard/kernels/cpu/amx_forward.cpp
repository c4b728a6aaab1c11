// The forward pass of bfloat16 attention on AMX. One task owns some queries of one (batch, key head), up to 16 pairs
// of panels (32 queries each), for a few of the heads that read the key head. Blocks of keys outside, queries inside:
//
//     K block      A tiles, in place: 16 keys x 32 features
//     V^T block    A tiles, packed once a block for all queries of the task: 16 features x 32 keys
//     S^T = K Q^T          Q^T packed once a task, pairs of features side by side; S^T float, 32 KiB, stays in L1
//     m, l, P^T            online softmax down the keys, a query a lane; P^T in bf16 takes the place of S^T, pairs of
//                          keys side by side, just as the next product reads it
//     O^T += V^T P^T       float, in L2; rescaled only when a maximum moved
//
// and O^T / l is transposed and rounded to the output at the end. A query's arithmetic depends on its own position and
// on the blocks of keys alone: bits depend on neither threads, batch-mates nor on how queries are cut into tasks.
#include <cmath>
#include <limits>
#include <vector>

#include "regard/kernels/cpu/amx.h"
#include "regard/kernels/cpu/amx_call.h"
#include "regard/kernels/cpu/amx_careful.h"
#include "regard/kernels/cpu/arena.h"
#include "regard/kernels/cpu/routes.h"

namespace regard::kernels {
namespace {

/// Keys a block: S^T of 32 queries is then 32 KiB of the 48 of L1; O^T moves through the tiles once a block.
constexpr int64_t kBlockKeys = 256;
/// Pairs of panels a task: V^T is packed for 512 queries at once, 4 to 8 % of their work.
constexpr int64_t kTaskTiles = 16;
/// Heads of a group that share a task, K and V; more would leave each too few queries.
constexpr int64_t kTaskHeads = 8;
/// Tasks are cut smaller until there are this many (two for each of 16 cores) or they are short of `kLeastSpan`.
constexpr int64_t kEnoughTasks = 32;
/// Queries a task at least when there are too few tasks: below, packing V^T costs more than 15 %.
constexpr int64_t kLeastSpan = 128;

/// Blocks of equal size: 257 keys are two blocks of 160, not one full and one empty.
int64_t block_keys(int64_t keys) {
  const int64_t blocks = std::max<int64_t>(1, ceil_div(keys, kBlockKeys));
  return std::max(kTileDepth, round_up(ceil_div(keys, blocks), kTileDepth));
}

/// How the queries of a call are cut.
struct ForwardPlan {
  explicit ForwardPlan(const AmxCall& c) : call(c), reach(c) {
    group = call.H / call.Hk;
    heads = std::min(group, kTaskHeads);
    head_sets = ceil_div(group, heads);
    queries = call.M - reach.first_query;
    span = std::max(kPanelPair, kTaskTiles / heads * kPanelPair);
    while (span > kLeastSpan && tasks() < kEnoughTasks) span = round_up(span / 2, kPanelPair);
  }
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
};

class ForwardTask {
 public:
  explicit ForwardTask(const ForwardPlan& plan)
      : plan_(plan),
        call_(plan.call),
        kernels_(*amx_kernels()),
        q_depth_(ceil_div(call_.Dh, kTileDepth)),
        v_tiles_(ceil_div(call_.Dv, kTile)),
        block_(block_keys(plan.reach.keys)) {
    Arena& arena = fresh_arena();
    const int64_t tiles = plan.heads * ceil_div(plan.span, kPanelPair);
    tiles_.resize(static_cast<size_t>(tiles));
    for (QueryTile& tile : tiles_) {
      tile.q = arena.take<char>(2 * q_depth_ * kTileBytes);
      tile.output = arena.take<float>(2 * output_floats());
      tile.state = arena.take<PanelState>(2);
    }
    scores_ = arena.take<float>(2 * block_ * kTile);
    keys_room_ = arena.take<char>(RowTiles::bytes(block_, call_.Dh));
    v_ = arena.take<char>(v_tiles_ * block_ / kTileDepth * kTileBytes);
  }

  void run(int64_t batch, int64_t key_head, int64_t head_set, int64_t span) {
    batch_ = batch;
    key_head_ = key_head;
    place_tiles(head_set, plan_.reach.first_query + span * plan_.span);
    for (size_t t = 0; t < used_; ++t) start(tiles_[t]);
    const int64_t end = plan_.reach.seen(last_query_);
    for (int64_t key = 0; key < end; key += block_) {
      enter_block(key, std::min(block_, end - key));
      for (size_t t = 0; t < used_; ++t) absorb(tiles_[t]);
    }
    for (size_t t = 0; t < used_; ++t) finish(tiles_[t]);
  }

 private:
  int64_t output_floats() const { return v_tiles_ * kTile * kTile; }

  void place_tiles(int64_t head_set, int64_t first) {
    const int64_t end = std::min(first + plan_.span, call_.M);
    const int64_t head_end = std::min((head_set + 1) * plan_.heads, plan_.group);
    last_query_ = end - 1;
    used_ = 0;
    for (int64_t query = first; query < end; query += kPanelPair) {
      for (int64_t h = head_set * plan_.heads; h < head_end; ++h) {
        QueryTile& tile = tiles_[used_++];
        tile.head = key_head_ * plan_.group + h;
        tile.first = query;
        tile.count = std::min(kPanelPair, end - query);
        tile.panels = ceil_div(tile.count, kTile);
      }
    }
  }

  /// Packs Q^T; a negative scale goes into its sign, so that the largest dot has the largest score.
  void start(QueryTile& tile) {
    TilePack pack;
    pack.packing = Packing::across;
    pack.data = bits_at(call_.q, batch_, tile.head, tile.first);
    pack.row = call_.q.row;
    pack.column = call_.q.column;
    pack.rows = tile.count;
    pack.columns = call_.Dh;
    pack.negate = call_.scale < 0;
    pack.out = tile.q;
    pack.row_tile = q_depth_ * kTileBytes;
    pack.column_tile = kTileBytes;
    kernels_.pack(pack);
    for (int64_t p = 0; p < 2; ++p) {
      std::fill_n(tile.state[p].maximum, kTile, -1e30f);  // below any dot, and not -inf: -inf - -inf is NaN
      std::fill_n(tile.state[p].sum, kTile, 0.0f);
    }
  }

  void enter_block(int64_t key, int64_t count) {
    key_ = key;
    keys_ = RowTiles::of(call_.k, batch_, key_head_, key, count, call_.N, call_.Dh, keys_room_);
    TilePack pack;
    pack.packing = Packing::pairs_across;
    pack.data = bits_at(call_.v, batch_, key_head_, key);
    pack.row = call_.v.row;
    pack.column = call_.v.column;
    pack.rows = count;
    pack.columns = call_.Dv;
    pack.out = v_;
    pack.row_tile = kTileBytes;
    pack.column_tile = block_ / kTileDepth * kTileBytes;
    kernels_.pack(pack);
    v_finite_ = !plan_.reach.causal || kernels_.finite(pack.data, pack.row, pack.column, count, call_.Dv);
  }

  void absorb(QueryTile& tile) {
    const int64_t count = std::min(block_, plan_.reach.seen(tile.first + tile.count - 1) - key_);
    if (count <= 0) return;
    const int64_t keys = round_up(count, kTileDepth), panel = keys * kTile;
    score(tile, keys);
    alignas(64) int32_t limit[kPanelPair];
    plan_.reach.limits(limit, kPanelPair, tile.first, tile.count, key_, count);
    int64_t open = count;
    for (int64_t p = 0; p < tile.panels; ++p) {
      PanelAbsorb absorb;
      absorb.dots = scores_ + p * panel;
      absorb.keys = keys;
      std::copy_n(limit + p * kTile, kTile, absorb.limit);
      absorb.open = absorb.limit[0] / 2 * 2;  // limits grow with the lane
      absorb.scale = static_cast<float>(std::abs(call_.scale) * kLog2e);
      absorb.state = tile.state + p;
      absorb.output = key_ > 0 ? tile.output + p * output_floats() : nullptr;
      absorb.width = v_tiles_ * kTile;
      kernels_.absorb(absorb);
      open = std::min<int64_t>(open, absorb.limit[0]);
    }
    if (v_finite_) {
      weigh(tile, keys, keys);
    } else {
      weigh_carefully(tile, keys, open / kTileDepth * kTileDepth, limit, count);
    }
  }

  /// S^T = K Q^T.
  void score(const QueryTile& tile, int64_t keys) {
    TileProduct p;
    p.a = keys_.data;
    p.a_row = keys_.row;
    p.a_tile = keys_.tile;
    p.a_depth = keys_.depth;
    p.b = tile.q;
    p.b_tile = q_depth_ * kTileBytes;
    p.b_depth = kTileBytes;
    p.c = scores_;
    p.c_row = kTileBytes;
    p.c_column = keys / kTile * kTileBytes;
    p.rows = keys / kTile;
    p.columns = tile.panels;
    p.depth = q_depth_;
    kernels_.multiply(p);
  }

  /// O^T += V^T P^T over the first `used` of `keys` keys.
  void weigh(const QueryTile& tile, int64_t keys, int64_t used) {
    TileProduct p;
    p.a = v_;
    p.a_tile = block_ / kTileDepth * kTileBytes;
    p.a_depth = kTileBytes;
    p.b = scores_;
    p.b_tile = keys / kTile * kTileBytes;
    p.b_depth = kTileBytes;
    p.c = tile.output;
    p.c_row = kTileBytes;
    p.c_column = output_floats() * static_cast<int64_t>(sizeof(float));
    p.rows = v_tiles_;
    p.columns = tile.panels;
    p.depth = used / kTileDepth;
    p.add = key_ > 0;
    kernels_.multiply(p);
  }

  void weigh_carefully(const QueryTile& tile, int64_t keys, int64_t open, const int32_t* limit, int64_t count) {
    weigh(tile, keys, open);
    for (int64_t p = 0; p < tile.panels; ++p) {
      CarefulOutput c;
      c.output = tile.output + p * output_floats();
      c.weights = reinterpret_cast<const char*>(scores_ + p * keys * kTile);
      c.limit = limit + p * kTile;
      c.v = bits_at(call_.v, batch_, key_head_, key_);
      c.row = call_.v.row;
      c.column = call_.v.column;
      c.width = call_.Dv;
      c.first = open;
      c.keys = count;
      careful_output(c);
    }
  }

  void finish(const QueryTile& tile) {
    for (int64_t p = 0; p < tile.panels; ++p) {
      const PanelState& state = tile.state[p];
      const int64_t first = tile.first + p * kTile, count = std::min(kTile, tile.first + tile.count - first);
      float factor[kTile];
      float* lse = call_.lse + (batch_ * call_.H + tile.head) * call_.M + first;
      for (int64_t l = 0; l < kTile; ++l) factor[l] = 1 / state.sum[l];
      for (int64_t l = 0; l < count; ++l) {
        lse[l] = static_cast<float>(std::abs(call_.scale) * state.maximum[l] + std::log(state.sum[l]));
      }
      PanelOut out;
      out.panel = tile.output + p * output_floats();
      out.width = call_.Dv;
      out.count = count;
      out.factor = factor;
      out.bf16 = reinterpret_cast<uint16_t*>(call_.o.data + batch_ * call_.o.batch + tile.head * call_.o.head +
                                             first * call_.o.row);
      out.row = call_.o.row;
      out.column = call_.o.column;
      kernels_.write(out);
    }
  }

  const ForwardPlan& plan_;
  const AmxCall& call_;
  const AmxKernels& kernels_;
  const int64_t q_depth_, v_tiles_, block_;
  std::vector<QueryTile> tiles_;
  size_t used_ = 0;
  float* scores_ = nullptr;  ///< S^T [panel][keys][16 queries], then P^T
  char *keys_room_ = nullptr, *v_ = nullptr;
  int64_t batch_ = 0, key_head_ = 0, last_query_ = 0, key_ = 0;
  RowTiles keys_;
  bool v_finite_ = true;
};

/// Rows that see no key.
void write_empty_rows(const AmxCall& call, int64_t count) {
  for (int64_t row = 0; row < call.B * call.H * count; ++row) {
    const int64_t batch = row / (call.H * count), head = row / count % call.H, query = row % count;
    bfloat16* o = call.o.data + batch * call.o.batch + head * call.o.head + query * call.o.row;
    for (int64_t d = 0; d < call.Dv; ++d) o[d * call.o.column] = {0};
    call.lse[(batch * call.H + head) * call.M + query] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

void amx_forward(const AmxCall& call) {
  count_route(Route::amx);
  if (call.B * call.H * call.M == 0) return;
  const ForwardPlan plan(call);
  write_empty_rows(call, plan.reach.first_query);
  const int64_t sequences = call.B * call.Hk * plan.head_sets, tasks = plan.tasks();
  run_tasks(tasks, [&](int64_t task) {
    // From the last queries, which see the most keys when causal.
    const int64_t span = plan.spans() - 1 - task / sequences, sequence = task % sequences;
    const int64_t key_head = sequence / plan.head_sets;
    amx_kernels()->begin();
    ForwardTask(plan).run(key_head / call.Hk, key_head % call.Hk, sequence % plan.head_sets, span);
    amx_kernels()->end();
  });
}

}  // namespace regard::kernels
