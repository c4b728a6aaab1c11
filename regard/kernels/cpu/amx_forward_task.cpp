// What one task of the forward does; amx_forward.cpp says how the data move.
#include "regard/kernels/cpu/amx_forward_task.h"

#include <cmath>

#include "regard/kernels/cpu/amx_careful.h"

namespace regard::kernels {
namespace {

/// Blocks of equal size: 257 keys are two blocks of 160, not one full and one empty.
int64_t block_keys(int64_t keys) {
  const int64_t blocks = std::max<int64_t>(1, ceil_div(keys, kBlockKeys));
  return std::max(kTileDepth, round_up(ceil_div(keys, blocks), kTileDepth));
}

}  // namespace

AmxForwardTask::AmxForwardTask(const AmxForwardPlan& plan)
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
  scores_ = arena.take<float>(kBuffers * 2 * block_ * kTile);
  keys_room_ = arena.take<char>(RowTiles::bytes(block_, call_.Dh));
  v_ = arena.take<char>(v_tiles_ * block_ / kTileDepth * kTileBytes);
}

void AmxForwardTask::run(int64_t batch, int64_t key_head, int64_t head_set, int64_t span) {
  batch_ = batch;
  key_head_ = key_head;
  place_tiles(head_set, plan_.reach.first_query + span * plan_.span);
  for (size_t t = 0; t < used_; ++t) start(tiles_[t]);
  const int64_t end = plan_.reach.seen(last_query_);
  for (int64_t key = 0; key < end; key += block_) {
    enter_block(key, std::min(block_, end - key));
    absorb_block();
  }
  for (size_t t = 0; t < used_; ++t) finish(tiles_[t]);
}

void AmxForwardTask::place_tiles(int64_t head_set, int64_t first) {
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
void AmxForwardTask::start(QueryTile& tile) {
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

void AmxForwardTask::enter_block(int64_t key, int64_t count) {
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

/// Softmax of one tile runs while the tile unit multiplies for its neighbors: the weights of the tile before with V,
/// and the scores of the tile after.
void AmxForwardTask::absorb_block() {
  active_.clear();
  for (size_t t = 0; t < used_; ++t) {
    if (plan_.reach.seen(tiles_[t].first + tiles_[t].count - 1) > key_) active_.push_back(&tiles_[t]);
  }
  for (size_t n = 0; n < active_.size(); ++n) place(*active_[n], scores_ + n % kBuffers * 2 * block_ * kTile);
  kernels_.multiply(score(*active_[0]));
  for (size_t n = 0; n < active_.size(); ++n) {
    absorb(*active_[n], n > 0 ? active_[n - 1] : nullptr, n + 1 < active_.size() ? active_[n + 1] : nullptr);
  }
  if (needs_care(*active_.back())) {
    weigh_carefully(*active_.back());
  } else {
    kernels_.multiply(weigh(*active_.back(), active_.back()->keys));
  }
}

/// What of the block the tile sees.
void AmxForwardTask::place(QueryTile& tile, float* scores) {
  tile.seen = std::min(block_, plan_.reach.seen(tile.first + tile.count - 1) - key_);
  tile.keys = round_up(tile.seen, kTileDepth);
  tile.scores = scores;
  plan_.reach.limits(tile.limit, kPanelPair, tile.first, tile.count, key_, tile.seen);
}

void AmxForwardTask::absorb(QueryTile& tile, const QueryTile* before, const QueryTile* after) {
  TileProduct beside[2];
  const TileProduct* given[2] = {nullptr, nullptr};
  if (before != nullptr && needs_care(*before)) {
    weigh_carefully(*before);
  } else if (before != nullptr) {
    beside[0] = weigh(*before, before->keys);
    given[0] = &beside[0];
  }
  if (after != nullptr) {
    beside[1] = score(*after);
    given[1] = &beside[1];
  }
  for (int64_t p = 0; p < tile.panels; ++p) {
    PanelAbsorb absorb;
    absorb.dots = tile.scores + p * tile.keys * kTile;
    absorb.keys = tile.keys;
    std::copy_n(tile.limit + p * kTile, kTile, absorb.limit);
    absorb.open = absorb.limit[0] / 2 * 2;  // limits grow with the lane
    absorb.scale = static_cast<float>(std::abs(call_.scale) * std::numbers::log2e);
    absorb.state = tile.state + p;
    absorb.output = key_ > 0 ? tile.output + p * output_floats() : nullptr;
    absorb.width = v_tiles_ * kTile;
    absorb.beside = given[p];
    kernels_.absorb(absorb);
  }
  if (tile.panels == 1 && after != nullptr) kernels_.multiply(beside[1]);
}

/// S^T = K Q^T.
TileProduct AmxForwardTask::score(const QueryTile& tile) const {
  TileProduct p;
  p.a = keys_.data;
  p.a_row = keys_.row;
  p.a_tile = keys_.tile;
  p.a_depth = keys_.depth;
  p.b = tile.q;
  p.b_tile = q_depth_ * kTileBytes;
  p.b_depth = kTileBytes;
  p.c = tile.scores;
  p.c_row = kTileBytes;
  p.c_column = tile.keys / kTile * kTileBytes;
  p.rows = tile.keys / kTile;
  p.columns = tile.panels;
  p.depth = q_depth_;
  return p;
}

/// O^T += V^T P^T over the first `keys` keys.
TileProduct AmxForwardTask::weigh(const QueryTile& tile, int64_t keys) const {
  TileProduct p;
  p.a = v_;
  p.a_tile = block_ / kTileDepth * kTileBytes;
  p.a_depth = kTileBytes;
  p.b = tile.scores;
  p.b_tile = tile.keys / kTile * kTileBytes;
  p.b_depth = kTileBytes;
  p.c = tile.output;
  p.c_row = kTileBytes;
  p.c_column = output_floats() * static_cast<int64_t>(sizeof(float));
  p.rows = v_tiles_;
  p.columns = tile.panels;
  p.depth = keys / kTileDepth;
  p.add = key_ > 0;
  return p;
}

void AmxForwardTask::weigh_carefully(const QueryTile& tile) {
  const int64_t open = tile.limit[0] / kTileDepth * kTileDepth;
  kernels_.multiply(weigh(tile, open));
  for (int64_t p = 0; p < tile.panels; ++p) {
    CarefulOutput c;
    c.output = tile.output + p * output_floats();
    c.weights = reinterpret_cast<const char*>(tile.scores + p * tile.keys * kTile);
    c.limit = tile.limit + p * kTile;
    c.v = bits_at(call_.v, batch_, key_head_, key_);
    c.row = call_.v.row;
    c.column = call_.v.column;
    c.width = call_.Dv;
    c.first = open;
    c.keys = tile.seen;
    careful_output(c);
  }
}

void AmxForwardTask::finish(const QueryTile& tile) {
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

}  // namespace regard::kernels
