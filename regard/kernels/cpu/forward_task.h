#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/kernels/cpu/normalizer_rows.h"
#include "regard/kernels/cpu/row_statistics.h"
#include "regard/kernels/cpu/tiles.h"

namespace regard::kernels {

/// Where a task leaves the rows of one part of the keys: sums not yet divided, (parts, B, H, M, Dv) and (parts, B, H,
/// M); maxima in base 2.
template <class T>
struct Partial {
  T *o = nullptr, *maximum = nullptr, *sum = nullptr;
};

/// One tile of queries of one (batch, head) against the key blocks [first, end). See forward.cpp.
template <class T>
class ForwardTask {
 public:
  /// statistics: the states of the rows without their outputs (z_score: with the sums of dP, see measure()).
  enum class Purpose : uint8_t { output, statistics };

  ForwardTask(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Arena& arena,
              Purpose purpose = Purpose::output)
      : plan_(plan),
        call_(plan.call),
        normalizer_(plan.call.spec->normalizer),
        purpose_(purpose),
        tiles_(plan, bound, map, arena) {
    for (const DotOperand<T>& dot : plan.dots) packed_.push_back(arena.take<T>(dot.q.width * kLanes));
    output_ = arena.take<T>(call_.Dv * kLanes);
    state_ = arena.take<RowState<T>>(1);
    tile_ = plan.dots.empty() ? arena.take<T>(kSteps * kLanes) : tiles_.scores(0);
    if (plan.pairs.weight.defined()) weight_ = arena.take<T>(kSteps * kLanes);
    if (normalizer_.kind == Normalizer::Kind::z_score) {
      value_sums_ = arena.take<T>(call_.Dv * kLanes);
      if (purpose == Purpose::statistics) {
        slopes_ = arena.take<T>(kSteps * kLanes);
        slope_sums_ = arena.take<T>(kLanes);
        centered_sums_ = arena.take<T>(kLanes);
      }
      kept_ = arena.take<T>(kSteps * kLanes);
    }
    if (!plan.pairs.masked()) return;
    keep_ = arena.take<int32_t>(kSteps * kLanes);
    if (plan.pairs.counted.pointer() != plan.pairs.keep.pointer()) counted_ = arena.take<int32_t>(kSteps * kLanes);
    finite_.reset(map.cuts().keys.parts);
  }

  /// The gradient of the output, whose products with the values `run` shall sum over the kept pairs: as the backward
  /// has them, scale included.
  void measure(const Array4<const T>& grad_o) { grad_o_ = grad_o; }

  /// Absorbs the key blocks [first, end); the part that holds block 0 absorbs the sinks too.
  void run(int64_t batch, int64_t head, int64_t query_tile, int64_t first, int64_t end) {
    tiles_.begin(batch, head, query_tile);
    for (size_t d = 0; d < packed_.size(); ++d) {
      const SideArray<T>& q = plan_.dots[d].q;
      pack_rows(packed_[d], q.at(batch, head, tiles_.first_query), q.array.row, q.array.column, tiles_.count, q.width,
                tiles_.query_scale());
    }
    if (slopes_ != nullptr) {
      pack_rows(output_, grad_o_.data + batch * grad_o_.batch + head * grad_o_.head + tiles_.first_query * grad_o_.row,
                grad_o_.row, grad_o_.column, tiles_.count, call_.Dv,
                plan_.plain ? static_cast<T>(plan_.space.scale) : T(1));
    }
    start_rows(first == 0);
    first = std::max(first, tiles_.map().first_block(batch, head, query_tile));
    end = std::min(end, tiles_.map().end_block(batch, head, query_tile));
    for (int64_t block = first; block < end; ++block) {
      if (tiles_.enter(block)) absorb_block();
    }
  }

  /// o and lse of the call's rows.
  void finish() {
    const Array4<T>& o = call_.o;
    T* lse = call_.lse + row();
    alignas(64) T inverse[kLanes] = {};  // lanes past the last query too: a stray subnormal is slow
    for (int64_t l = 0; l < tiles_.count && !plan_.exponential; ++l) {
      const FinishedRow<T> row = finish_row(normalizer_, call_.N, state_->sum[l], state_->square[l]);
      inverse[l] = row.factor;
      lse[l] = row.lse;
    }
    for (int64_t l = 0; l < tiles_.count && plan_.exponential; ++l) {
      const T sum = state_->sum[l];
      inverse[l] = sum == 0 ? T(0) : 1 / sum;
      lse[l] = sum == 0 ? kNothing : state_->maximum[l] * tiles_.natural() + std::log(sum);
    }
    write_rows(output_, o.data + tiles_.batch * o.batch + tiles_.head * o.head + tiles_.first_query * o.row, o.row,
               o.column, inverse);
  }

  /// The state itself, for the backward; see RowStatistics.
  void leave_statistics(RowStatistics<T>& rows) const {
    const auto first = static_cast<size_t>(row());
    std::copy_n(state_->sum, tiles_.count, rows.sum.data() + first);
    if (slopes_ == nullptr) return;
    std::copy_n(state_->maximum, tiles_.count, rows.mean.data() + first);
    std::copy_n(state_->square, tiles_.count, rows.square.data() + first);
    std::copy_n(state_->residual, tiles_.count, rows.residual.data() + first);
    std::copy_n(slope_sums_, tiles_.count, rows.slopes.data() + first);
    std::copy_n(centered_sums_, tiles_.count, rows.centered.data() + first);
  }

  /// The state itself, for a later merge.
  void leave(const Partial<T>& partial, int64_t part) {
    const int64_t at = part * call_.B * call_.H * call_.M + row();
    for (int64_t l = 0; l < tiles_.count; ++l) partial.maximum[at + l] = state_->maximum[l] * tiles_.unit();
    std::copy_n(state_->sum, tiles_.count, partial.sum + at);
    write_rows(output_, partial.o + at * call_.Dv, call_.Dv, 1, nullptr);
  }

 private:
  static constexpr T kNothing = -std::numeric_limits<T>::infinity();

  int64_t row() const { return (tiles_.batch * call_.H + tiles_.head) * call_.M + tiles_.first_query; }

  /// The state before the first key: the sinks' logits alone.
  void start_rows(bool with_sinks) {
    T maximum = kNothing, sum = 0;
    const T* sinks = call_.sinks + tiles_.head * call_.sink_count;
    const int64_t sink_count = with_sinks ? call_.sink_count : 0;
    for (int64_t s = 0; s < sink_count; ++s) maximum = std::max(maximum, sinks[s]);
    for (int64_t s = 0; s < sink_count && maximum != kNothing; ++s) sum += std::exp(sinks[s] - maximum);
    std::fill_n(state_->maximum, kLanes, plan_.exponential ? maximum / tiles_.natural() : T(0));
    std::fill_n(state_->sum, kLanes, sum);
    if (slopes_ == nullptr) std::fill_n(output_, call_.Dv * kLanes, T(0));
    if (value_sums_ == nullptr) return;
    std::fill_n(state_->square, kLanes, T(0));
    std::fill_n(state_->residual, kLanes, T(0));
    std::fill_n(value_sums_, call_.Dv * kLanes, T(0));
    if (slopes_ == nullptr) return;
    std::fill_n(slope_sums_, kLanes, T(0));
    std::fill_n(centered_sums_, kLanes, T(0));
  }

  void absorb_block() {
    std::fill_n(state_->block_maximum, kLanes, kNothing);
    const bool masked = tiles_.masked();
    const SideArray<T>& v = plan_.v;
    // A hidden pair's weight is 0, but 0 times NaN is not.
    const bool clean = !masked || finite_.at(tiles_.block, v.at(tiles_.batch, tiles_.head, tiles_.block_begin),
                                             block_keys(), v.width, v.array.row, v.array.column);
    T* const maximum =
        tiles_.plain() && normalizer_.kind == Normalizer::Kind::softmax ? state_->block_maximum : nullptr;
    for (size_t d = 0; d < packed_.size() && !counts_alone(); ++d) tiles_.multiply(d, packed_[d], maximum);
    // Hidden scores are -inf: without weights and with counted = keep their exponentials are 0 already.
    const bool absorbs_keep = masked && (weight_ != nullptr || counted_ != nullptr || needs_masks(normalizer_));
    const bool needs_keep = absorbs_keep || !clean;
    for (int64_t first = 0; first < tiles_.steps && !tiles_.plain(); first += kChunk) {
      keep_chunk(first, std::min(kChunk, tiles_.steps - first), needs_keep);
    }
    Absorb<T> absorb;
    absorb.tile = tile_;
    absorb.weight = weight_;
    absorb.counted = masked ? counted_ : nullptr;
    absorb.keep = absorbs_keep ? keep_ : nullptr;
    absorb.unit = tiles_.unit();
    absorb.steps = tiles_.steps;
    absorb.lanes = tiles_.lanes;
    absorb.state = state_;
    absorb.kept = kept_;
    primitives<T>().absorb[static_cast<int>(normalizer_.kind)](absorb);
    if (slopes_ != nullptr) add_slopes();
    if (purpose_ == Purpose::statistics) return;
    const int32_t* const mask = clean ? nullptr : keep_;
    if (value_sums_ != nullptr) accumulate_values(mask);
    accumulate(output_, tile_, mask);
  }

  /// Whether only the kept pairs of plain scores are wanted, which masks say.
  bool counts_alone() const {
    return purpose_ == Purpose::statistics && plan_.plain && normalizer_.divisor == Normalizer::Divisor::kept;
  }

  /// z_score: O^T moves from the old mean to the new one, then V^T [keep] weight is added to the sums of the values.
  void accumulate_values(const int32_t* mask) {
    primitives<T>().add_scaled(output_, value_sums_, state_->factor, call_.Dv, tiles_.lanes);
    accumulate(value_sums_, kept_, mask);
  }

  /// dP^T = V dO^T, and its sums over the pairs, plain and times s - mean (which moves as in accumulate_values).
  void add_slopes() {
    tiles_.multiply(plan_.v, output_, slopes_);
    primitives<T>().add_scaled(centered_sums_, slope_sums_, state_->factor, 1, tiles_.lanes);
    primitives<T>().add_kept(centered_sums_, tile_, slopes_, tiles_.steps, tiles_.lanes);
    primitives<T>().add_kept(slope_sums_, kept_, slopes_, tiles_.steps, tiles_.lanes);
  }

  int64_t block_keys() const {
    const Cut& keys = tiles_.map().cuts().keys;
    return keys.end(tiles_.block) - keys.begin(tiles_.block);
  }

  /// Scores, masks and weights of one chunk, from the program into the block's tiles. The score tile may be where the
  /// program reads its dot, so it is written last.
  void keep_chunk(int64_t first, int64_t steps, bool needs_keep) {
    const int64_t at = first * kLanes;
    View<T> score{tile_ + at, kLanes};
    View<int32_t> live;
    if (plan_.plain && tiles_.banded()) {
      if (tiles_.hides(first)) live = tiles_.band(first, steps);
      if (needs_keep) tiles_.copy_mask(keep_ + at, live, steps);
    } else if (!plan_.plain || tiles_.hides(first)) {
      tiles_.run(first, steps);
      const TileEvaluator<T>& program = tiles_.program();
      const Program& code = program.program();
      if (weight_ != nullptr) copy_rows(weight_ + at, program.reals(code.weight), steps);
      if (needs_keep) tiles_.copy_mask(keep_ + at, program.integers(code.keep), steps);
      if (needs_keep && counted_ != nullptr) tiles_.copy_mask(counted_ + at, program.integers(code.counted), steps);
      score = program.reals(code.score);
      live = program.integers(code.live);
    } else if (needs_keep) {
      tiles_.copy_mask(keep_ + at, {}, steps);
      if (counted_ != nullptr) tiles_.copy_mask(counted_ + at, {}, steps);
    }
    primitives<T>().mask_scores(tile_ + at, score, live, steps, tiles_.lanes, state_->block_maximum);
  }

  void copy_rows(T* to, View<T> from, int64_t steps) const {
    for (int64_t s = 0; s < steps; ++s) std::copy_n(from.data + s * from.step, tiles_.lanes, to + s * kLanes);
  }

  /// O^T = factor O^T + V^T P^T; without a maximum the factor is 1.
  void accumulate(T* output, const T* weights, const int32_t* mask) {
    tiles_.accumulate(plan_.v, weights, mask, output, plan_.exponential ? Product<T>::rescale : Product<T>::add,
                      state_->factor);
  }

  void write_rows(T* packed, T* array, int64_t row, int64_t column, const T* factor) const {
    Transpose<T> t;
    t.array = array;
    t.packed = packed;
    t.row = row;
    t.column = column;
    t.count = tiles_.count;
    t.width = call_.Dv;
    t.factor = factor;
    primitives<T>().unpack(t);
  }

  const Plan<T>& plan_;
  const Attention<T>& call_;
  const Normalizer& normalizer_;
  const Purpose purpose_;
  Tiles<T> tiles_;
  FiniteBlocks<T> finite_;  // of values
  std::vector<T*> packed_;  // Q^T of every dot
  T* output_ = nullptr;     // O^T (Dv x kLanes), not yet divided
  RowState<T>* state_ = nullptr;
  T *tile_ = nullptr, *weight_ = nullptr;
  T *value_sums_ = nullptr, *kept_ = nullptr;  // z_score: V^T [keep] weight (Dv x kLanes), and that tile of weights
  // Statistics of a z_score: the tile dP^T and its sums; dO^T lies in output_.
  T *slopes_ = nullptr, *slope_sums_ = nullptr, *centered_sums_ = nullptr;
  Array4<const T> grad_o_;
  int32_t *keep_ = nullptr, *counted_ = nullptr;
};

}  // namespace regard::kernels
