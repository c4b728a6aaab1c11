// The forward pass. One task owns one tile of queries (the lanes) of one (batch, head) and walks over the blocks of
// keys (the steps):
//
//     S^T = K Q^T          K read in place, Q^T packed once a task
//     program              scores, masks and weights of the pairs, chunk by chunk in L1
//     m, l, P^T            online softmax: maximum and sum are vectors over the lanes
//     O^T = f O^T + V^T P^T   V read in place, f = exp(old m - new m)
//
// and transposes O^T / l to the output at the end. Tasks share nothing that is written, and the blocks are cut by
// position alone: bits depend on neither threads nor batch-mates.
#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/tiles.h"

namespace regard::kernels {
namespace {

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

template <class T>
class ForwardTask {
 public:
  ForwardTask(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Arena& arena)
      : plan_(plan), call_(plan.call), tiles_(plan, bound, map, Side::queries, arena) {
    output_ = arena.take<T>(call_.Dv * kLanes);
    state_ = arena.take<RowState<T>>(1);
    tile_ = plan.dots.empty() ? arena.take<T>(kSteps * kLanes) : tiles_.scores(0);
    if (plan.pairs.weight.defined()) weight_ = arena.take<T>(kSteps * kLanes);
    if (!plan.pairs.masked()) return;
    keep_ = arena.take<int32_t>(kSteps * kLanes);
    if (plan.pairs.counted.pointer() != plan.pairs.keep.pointer()) counted_ = arena.take<int32_t>(kSteps * kLanes);
  }

  void run(int64_t batch, int64_t head, int64_t tile) {
    tiles_.begin(batch, head, tile);
    start_rows();
    for (int64_t block = 0; block < tiles_.blocks(); ++block) {
      if (tiles_.enter(block)) absorb_block();
    }
    finish_rows();
  }

 private:
  /// The state before the first key: the sinks' logits alone.
  void start_rows() {
    T maximum = kNothing<T>, sum = 0;
    const T* sinks = call_.sinks + tiles_.head * call_.sink_count;
    for (int64_t s = 0; s < call_.sink_count; ++s) maximum = std::max(maximum, sinks[s]);
    for (int64_t s = 0; s < call_.sink_count && maximum != kNothing<T>; ++s) sum += std::exp(sinks[s] - maximum);
    std::fill_n(state_->maximum, kLanes, maximum);
    std::fill_n(state_->sum, kLanes, sum);
    std::fill_n(output_, call_.Dv * kLanes, T(0));
  }

  void absorb_block() {
    std::fill_n(state_->block_maximum, kLanes, kNothing<T>);
    for (int64_t first = 0; first < tiles_.steps; first += kChunk) {
      const int64_t steps = std::min(kChunk, tiles_.steps - first);
      tiles_.run(first, steps);
      keep_chunk(first, steps);
    }
    const bool masked = tiles_.masked();
    Absorb<T> absorb;
    absorb.tile = tile_;
    absorb.weight = weight_;
    absorb.counted = masked ? counted_ : nullptr;
    // Hidden scores are -inf: without weights and with counted = keep their exponentials are 0 already.
    absorb.keep = masked && (weight_ != nullptr || counted_ != nullptr) ? keep_ : nullptr;
    absorb.steps = tiles_.steps;
    absorb.lanes = tiles_.lanes;
    absorb.state = state_;
    primitives<T>().absorb(absorb);
    const SideArray<T>& v = plan_.v;
    accumulate(output_, v.at(tiles_.batch, tiles_.head, tiles_.first_step), v.array.row, v.array.column, v.width,
               static_cast<const T*>(tile_), masked ? keep_ : nullptr, tiles_.steps, tiles_.lanes,
               static_cast<const T*>(state_->factor));
  }

  /// Moves the program's results into the block's tiles. The score tile may be where the program reads its dot, so it
  /// is written last.
  void keep_chunk(int64_t first, int64_t steps) {
    const TileEvaluator<T>& program = tiles_.program();
    const Program& code = program.program();
    const int64_t at = first * kLanes;
    if (weight_ != nullptr) copy_rows(weight_ + at, program.reals(code.weight), steps);
    if (tiles_.masked()) {
      copy_rows(keep_ + at, program.integers(code.keep), steps);
      if (counted_ != nullptr) copy_rows(counted_ + at, program.integers(code.counted), steps);
    }
    primitives<T>().mask_scores(tile_ + at, program.reals(code.score), program.integers(code.live), steps, tiles_.lanes,
                                state_->block_maximum);
  }

  template <class D>
  void copy_rows(D* to, View<D> from, int64_t steps) const {
    for (int64_t s = 0; s < steps; ++s) std::copy_n(from.data + s * from.step, tiles_.lanes, to + s * kLanes);
  }

  void finish_rows() {
    const Array4<T>& o = call_.o;
    T* rows = o.data + tiles_.batch * o.batch + tiles_.head * o.head + tiles_.first_lane * o.row;
    T* lse = call_.lse + (tiles_.batch * call_.H + tiles_.head) * call_.M + tiles_.first_lane;
    for (int64_t l = 0; l < tiles_.count; ++l) {
      const T sum = state_->sum[l];
      const T inverse = sum == 0 ? T(0) : 1 / sum;
      lse[l] = sum == 0 ? kNothing<T> : state_->maximum[l] + std::log(sum);
      for (int64_t d = 0; d < call_.Dv; ++d) rows[l * o.row + d * o.column] = output_[d * kLanes + l] * inverse;
    }
  }

  const Plan<T>& plan_;
  const Attention<T>& call_;
  Tiles<T> tiles_;
  T* output_ = nullptr;  // O^T (Dv x kLanes), not yet divided
  RowState<T>* state_ = nullptr;
  T *tile_ = nullptr, *weight_ = nullptr;
  int32_t *keep_ = nullptr, *counted_ = nullptr;
};

}  // namespace

template <class T>
void attention_forward(const Attention<T>& call) {
  const Plan<T> plan(call);
  if (call.B == 0 || call.H == 0 || call.M == 0) return;
  const BoundPrograms bound = bind_programs(plan, Side::queries, false);
  const TileMap map(plan.pairs, plan.space, call.captures, Side::queries);
  const int64_t tiles = map.lane_tiles();
  parallel_for(call.B * call.H * tiles, [&](int64_t task) {
    ForwardTask<T> forward(plan, bound, map, fresh_arena());
    forward.run(task / tiles / call.H, task / tiles % call.H, task % tiles);
  });
}

template void attention_forward(const Attention<float>&);
template void attention_forward(const Attention<double>&);

}  // namespace regard::kernels
