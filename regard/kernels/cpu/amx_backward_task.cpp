// What one owner of keys does. Once a head, its queries are packed in the four ways that the products read them. Then,
// for every block of keys (outside, so that its sums stay in L2) and every 128 queries that see it:
//
//     S^T  = K Q^T           32 queries x 128 keys at a time, in L1, ...
//     dP^T = V dO^T
//     P = 2^(S - lse), dS = scale P (dP - delta)     ... which become bf16 in L2:
//     dV   += P^T dO         P^T  as A tiles [keys][queries], depth 128 queries
//     dK   += dS^T Q         dS^T as A tiles [keys][queries]
//     dQ^T += K^T dS^T       dS^T as B tiles, pairs of keys side by side, depth a block of keys
//
// K and V are read in place where their rows fill tiles; K^T is packed once a block. Sums are float.
#include "regard/kernels/cpu/amx_backward_task.h"

#include <cmath>
#include <cstring>

#include "regard/kernels/cpu/amx_careful.h"

namespace regard::kernels {
namespace {

constexpr int64_t kStepTiles = kBackwardQueries / kTileDepth;  // tiles of 32 queries a step
constexpr int64_t kRowTile = kStepTiles * kTileBytes;          // from 16 keys to the next in P and dS
constexpr int64_t kTileFloats = kTile * kTile;

}  // namespace

AmxBackwardTask::AmxBackwardTask(const AmxBackwardPlan& plan)
    : plan_(plan),
      call_(plan.call),
      kernels_(*amx_kernels()),
      q_depth_(ceil_div(call_.Dh, kTileDepth)),
      v_depth_(ceil_div(call_.Dv, kTileDepth)),
      q_tiles_(ceil_div(call_.Dh, kTile)),
      v_tiles_(ceil_div(call_.Dv, kTile)) {
  Arena& arena = fresh_arena();
  const int64_t queries = round_up(plan.queries(), kPanelPair), block = plan.block;
  int64_t longest = 0;
  for (int64_t p = 0; p < plan.parts(); ++p) longest = std::max(longest, plan.starts[p + 1] - plan.starts[p]);
  const int64_t key_tiles = round_up(longest, block) / kTile;
  head_.q_across = arena.take<char>(queries / kTile * q_depth_ * kTileBytes);
  head_.g_across = arena.take<char>(queries / kTile * v_depth_ * kTileBytes);
  head_.q_pairs = arena.take<char>(queries / kTileDepth * q_tiles_ * kTileBytes);
  head_.g_pairs = arena.take<char>(queries / kTileDepth * v_tiles_ * kTileBytes);
  head_.lse = arena.take<float>(queries);
  head_.delta = arena.take<float>(queries);
  k_room_ = arena.take<char>(RowTiles::bytes(block, call_.Dh));
  v_room_ = arena.take<char>(RowTiles::bytes(block, call_.Dv));
  k_across_ = arena.take<char>(block / kTileDepth * q_tiles_ * kTileBytes);
  dots_ = arena.take<float>(kChainKeys * kPanelPair);
  dp_ = arena.take<float>(kChainKeys * kPanelPair);
  p_ = arena.take<char>(block / kTile * kRowTile);
  ds_ = arena.take<char>(block / kTile * kRowTile);
  ds_pairs_ = arena.take<char>(block / kTileDepth * 2 * kStepTiles * kTileBytes);
  dk_ = arena.take<float>(key_tiles * q_tiles_ * kTileFloats);
  dv_ = arena.take<float>(key_tiles * v_tiles_ * kTileFloats);
  std::fill_n(dk_, key_tiles * q_tiles_ * kTileFloats, 0.0f);
  std::fill_n(dv_, key_tiles * v_tiles_ * kTileFloats, 0.0f);
  if (plan.parts() == 1 && plan.gradient.q != nullptr) own_dq_ = arena.take<float>(plan.dq_floats());
}

void AmxBackwardTask::run(int64_t batch, int64_t key_head, int64_t part, float* const* dq) {
  batch_ = batch;
  key_head_ = key_head;
  part_start_ = plan_.starts[part];
  const int64_t end = plan_.starts[part + 1];
  for (int64_t g = 0; g < plan_.group; ++g) {
    query_head_ = key_head * plan_.group + g;
    prepare(query_head_);
    float* sums = dq != nullptr ? dq[g] : own_dq_;
    if (sums != nullptr) std::fill_n(sums, plan_.dq_floats(), 0.0f);
    for (int64_t key = part_start_; key < end; key += plan_.block) {
      enter_block(key, std::min(plan_.block, end - key));
      for (int64_t first = 0; first < plan_.queries(); first += kBackwardQueries) {
        step(first, std::min(kBackwardQueries, plan_.queries() - first), sums);
      }
    }
    if (own_dq_ != nullptr) write_dq(plan_, batch, query_head_, own_dq_, 1, 0);
  }
  write_keys(part);
}

void AmxBackwardTask::enter_block(int64_t key, int64_t count) {
  key_ = key;
  count_ = count;
  k_ = RowTiles::of(call_.k, batch_, key_head_, key, count, call_.N, call_.Dh, k_room_);
  v_ = RowTiles::of(call_.v, batch_, key_head_, key, count, call_.N, call_.Dv, v_room_);
  TilePack pack = pack_of(call_.k, bits_at(call_.k, batch_, key_head_, key), count, call_.Dh);
  pack.packing = Packing::pairs_across;
  pack.out = k_across_;
  pack.row_tile = kTileBytes;
  pack.column_tile = plan_.block / kTileDepth * kTileBytes;
  kernels_.pack(pack);
  if (!plan_.reach.causal) return;
  const auto finite = [&](const Array4<const bfloat16>& x, int64_t width) {
    return kernels_.finite(bits_at(x, batch_, key_head_, key), x.row, x.column, count, width);
  };
  keys_finite_ = finite(call_.k, call_.Dh) && finite(call_.v, call_.Dv);
}

/// Queries [first, first + count), counted from the first that sees a key, against the block.
void AmxBackwardTask::step(int64_t first, int64_t count, float* dq) {
  const int64_t query = plan_.reach.first_query + first;
  const int64_t seen = std::min(count_, plan_.reach.seen(query + count - 1) - key_);
  if (seen <= 0) return;
  if (needs_care(first, seen)) {
    step_carefully(first, count, dq);
    return;
  }
  score(first, count, seen);
  add_products(first, count, seen, dq);
}

/// P and dS of the step in bf16, for keys up to the tile that holds the last seen one.
void AmxBackwardTask::score(int64_t first, int64_t count, int64_t seen) {
  const int64_t keys = round_up(seen, kTileDepth), pairs_panel = plan_.block / kTileDepth * kTileBytes;
  for (int64_t tile = 0; tile * kPanelPair < count; ++tile) {
    const int64_t at = first + tile * kPanelPair, here = std::min(kPanelPair, count - tile * kPanelPair);
    alignas(64) int32_t limit[kPanelPair];
    plan_.reach.limits(limit, kPanelPair, plan_.reach.first_query + at, here, key_, seen);
    int64_t chunk = 0;
    for (; chunk < limit[here - 1]; chunk += kChainKeys) {
      score_chunk(at / kTile, tile, chunk, std::min(kChainKeys, keys - chunk), limit);
    }
    for (; chunk < keys; chunk += kTileDepth) {  // hidden from these 32 queries, though not from the step
      for (char* to : {p_, ds_}) {
        for (int64_t t = 0; t < 2; ++t) {
          std::memset(to + (chunk / kTile + t) * kRowTile + tile * kTileBytes, 0, kTileBytes);
        }
      }
      for (int64_t p = 0; p < 2; ++p) {
        std::memset(ds_pairs_ + (2 * tile + p) * pairs_panel + chunk / kTileDepth * kTileBytes, 0, kTileBytes);
      }
    }
  }
}

void AmxBackwardTask::score_chunk(int64_t panel, int64_t tile, int64_t chunk, int64_t keys, const int32_t* limit) {
  TileProduct p;
  p.a = static_cast<const char*>(k_.data) + chunk / kTile * k_.tile;
  p.a_row = k_.row;
  p.a_tile = k_.tile;
  p.a_depth = k_.depth;
  p.b = head_.q_across + panel * q_depth_ * kTileBytes;
  p.b_tile = q_depth_ * kTileBytes;
  p.b_depth = kTileBytes;
  p.c = dots_;
  p.c_row = kTileBytes;
  p.c_column = keys / kTile * kTileBytes;
  p.rows = keys / kTile;
  p.columns = 2;
  p.depth = q_depth_;
  kernels_.multiply(p);
  p.a = static_cast<const char*>(v_.data) + chunk / kTile * v_.tile;
  p.a_row = v_.row;
  p.a_tile = v_.tile;
  p.a_depth = v_.depth;
  p.b = head_.g_across + panel * v_depth_ * kTileBytes;
  p.b_tile = v_depth_ * kTileBytes;
  p.c = dp_;
  p.depth = v_depth_;
  kernels_.multiply(p);
  PairChain c;
  c.dots = dots_;
  c.dp = dp_;
  c.keys = keys;
  for (int64_t l = 0; l < kPanelPair; ++l) c.limit[l] = static_cast<int32_t>(limit[l] - chunk);
  c.open = std::clamp<int64_t>(c.limit[0], 0, keys) / 2 * 2;
  c.scale = static_cast<float>(std::abs(call_.scale) * std::numbers::log2e);
  c.factor = static_cast<float>(call_.scale);
  c.lse = head_.lse + panel * kTile;
  c.delta = head_.delta + panel * kTile;
  c.p = p_ + chunk / kTile * kRowTile + tile * kTileBytes;
  c.ds = ds_ + chunk / kTile * kRowTile + tile * kTileBytes;
  c.row_tile = kRowTile;
  c.panel = plan_.block / kTileDepth * kTileBytes;
  c.ds_pairs = ds_pairs_ + 2 * tile * c.panel + chunk / kTileDepth * kTileBytes;
  kernels_.chain(c);
}

void AmxBackwardTask::add_products(int64_t first, int64_t count, int64_t seen, float* dq) {
  const int64_t tile = (key_ - part_start_) / kTile, step = first / kTileDepth;
  TileProduct p;
  p.add = true;
  p.a_tile = kRowTile;
  p.a_depth = kTileBytes;
  p.b_tile = kTileBytes;
  p.rows = round_up(seen, kTileDepth) / kTile;
  p.depth = ceil_div(count, kTileDepth);
  p.c_column = kTileBytes;
  if (plan_.gradient.v != nullptr) {
    p.a = p_;
    p.b = head_.g_pairs + step * v_tiles_ * kTileBytes;
    p.b_depth = v_tiles_ * kTileBytes;
    p.c = dv_ + tile * v_tiles_ * kTileFloats;
    p.c_row = v_tiles_ * kTileBytes;
    p.columns = v_tiles_;
    kernels_.multiply(p);
  }
  if (plan_.gradient.k != nullptr) {
    p.a = ds_;
    p.b = head_.q_pairs + step * q_tiles_ * kTileBytes;
    p.b_depth = q_tiles_ * kTileBytes;
    p.c = dk_ + tile * q_tiles_ * kTileFloats;
    p.c_row = q_tiles_ * kTileBytes;
    p.columns = q_tiles_;
    kernels_.multiply(p);
  }
  if (dq == nullptr) return;
  p.a = k_across_;
  p.a_tile = plan_.block / kTileDepth * kTileBytes;
  p.b = ds_pairs_;
  p.b_tile = p.a_tile;
  p.b_depth = kTileBytes;
  p.rows = q_tiles_;
  p.columns = 2 * ceil_div(count, kPanelPair);
  p.depth = ceil_div(seen, kTileDepth);
  p.c = dq + first / kTile * q_tiles_ * kTileFloats;
  p.c_row = kTileBytes;
  p.c_column = q_tiles_ * kTileBytes;
  kernels_.multiply(p);
}

/// Whether products over all pairs would let NaN or infinity through a hidden pair.
bool AmxBackwardTask::needs_care(int64_t first, int64_t seen) const {
  if (!plan_.reach.causal) return false;
  const bool all_seen = seen == count_ && plan_.reach.seen(plan_.reach.first_query + first) - key_ >= count_;
  return !all_seen && !(keys_finite_ && head_.finite[static_cast<size_t>(first / kBackwardQueries)]);
}

void AmxBackwardTask::step_carefully(int64_t first, int64_t count, float* dq) {
  CarefulGradient c;
  c.call = &call_;
  c.gradient = &plan_.gradient;
  c.reach = &plan_.reach;
  c.batch = batch_;
  c.head = query_head_;
  c.key_head = key_head_;
  c.query = plan_.reach.first_query + first;
  c.queries = count;
  c.key = key_;
  c.keys = count_;
  c.lse = head_.lse + first;
  c.delta = head_.delta + first;
  const int64_t tile = (key_ - part_start_) / kTile;
  c.dk = dk_ + tile * q_tiles_ * kTileFloats;
  c.dv = dv_ + tile * v_tiles_ * kTileFloats;
  c.dq = dq == nullptr ? nullptr : dq + first / kTile * q_tiles_ * kTileFloats;
  careful_gradient(c);
}

}  // namespace regard::kernels
