#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "regard/kernels/cpu/capture_gradient.h"
#include "regard/kernels/cpu/row_terms.h"
#include "regard/kernels/cpu/tiles.h"

namespace regard::kernels {

/// Where a task adds the gradients of captured tensors; buffers of its unit, or the tensors themselves.
struct CaptureSink {
  const GradientSchedule* schedule = nullptr;
  GradientBuffers* buffers = nullptr;
  int64_t unit = 0;
};

/// The gradients of the lanes of one tile of one (batch, head): of the queries' side or of the keys' side. See
/// backward.cpp for the products.
template <class T>
class BackwardTask {
 public:
  BackwardTask(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Side lanes,
               const SideArray<T>& grad_o, const RowTerms<T>& rows, Arena& arena)
      : plan_(plan),
        by_query_(lanes == Side::queries),
        tiles_(plan, bound, map, lanes, arena),
        rows_(rows),
        lane_value_(by_query_ ? grad_o : plan.v),
        step_value_(by_query_ ? plan.v : grad_o) {
    packed_value_ = arena.take<T>(plan.v.width * kLanes);
    dp_ = arena.take<T>(kSteps * kLanes);
    ds_ = arena.take<T>(kChunk * kLanes);
    if (plan.pairs.weight.defined()) dw_ = arena.take<T>(kChunk * kLanes);
    terms_ = arena.take<T>(kChunk * kLanes);
    if (lane_value_.gradient != nullptr) value_sum_ = arena.take<T>(plan.v.width * kLanes);
    for (size_t d = 0; d < plan.dots.size(); ++d) {
      const SideArray<T>& side = tiles_.lane_side(d);
      slopes_.push_back(side.gradient != nullptr ? arena.take<T>(kSteps * kLanes) : nullptr);
      sums_.push_back(side.gradient != nullptr ? arena.take<T>(side.width * kLanes) : nullptr);
    }
    if (!plan.pairs.masked()) return;
    keep_ = arena.take<int32_t>(kSteps * kLanes);
    const bool apart = plan.pairs.counted.pointer() != plan.pairs.keep.pointer();
    live_ = apart ? arena.take<int32_t>(kSteps * kLanes) : keep_;
  }

  void run(int64_t batch, int64_t head, int64_t tile, const CaptureSink& sink) {
    tiles_.begin(batch, head, tile);
    begin_rows();
    for (int64_t block = 0; block < tiles_.blocks(); ++block) {
      if (tiles_.enter(block)) add_block(sink);
    }
    write_sums();
  }

 private:
  void begin_rows() {
    const int64_t first = tiles_.first_lane;
    pack_lanes(packed_value_, lane_value_.at(tiles_.batch, tiles_.head, first), lane_value_.array.row,
               lane_value_.array.column, tiles_.count, lane_value_.width);
    const int64_t row = (tiles_.batch * plan_.call.H + tiles_.head) * plan_.call.M;
    lse_ = rows_.lse.data() + row;
    delta_ = rows_.delta.data() + row;
    if (by_query_) {
      // Lanes past the last query repeat nothing: their p must be 0.
      std::fill_n(lane_lse_, kLanes, std::numeric_limits<T>::infinity());
      std::fill_n(lane_delta_, kLanes, T(0));
      std::copy_n(lse_ + first, tiles_.count, lane_lse_);
      std::copy_n(delta_ + first, tiles_.count, lane_delta_);
    }
    if (value_sum_ != nullptr) std::fill_n(value_sum_, plan_.v.width * kLanes, T(0));
    for (size_t d = 0; d < sums_.size(); ++d) {
      if (sums_[d] != nullptr) std::fill_n(sums_[d], tiles_.lane_side(d).width * kLanes, T(0));
    }
  }

  void add_block(const CaptureSink& sink) {
    multiply_values();
    for (int64_t first = 0; first < tiles_.steps; first += kChunk) {
      const int64_t steps = std::min(kChunk, tiles_.steps - first);
      tiles_.run(first, steps);
      chain_chunk(first, steps);
      slopes_of_chunk(first, steps);
      if (sink.schedule != nullptr) captures_of_chunk(sink, steps);
    }
    const bool masked = tiles_.masked();
    if (value_sum_ != nullptr) add_product(value_sum_, step_value_, dp_, masked ? keep_ : nullptr);
    for (size_t d = 0; d < sums_.size(); ++d) {
      if (sums_[d] != nullptr) add_product(sums_[d], tiles_.step_side(d), slopes_[d], masked ? live_ : nullptr);
    }
  }

  /// dp = <grad_o_i, v_j>
  void multiply_values() {
    Product<T> p;
    p.c = dp_;
    p.a = step_value_.at(tiles_.batch, tiles_.head, tiles_.first_step);
    p.a_row = step_value_.array.row;
    p.a_depth = step_value_.array.column;
    p.b = packed_value_;
    p.rows = tiles_.steps;
    p.depth = step_value_.width;
    p.lanes = tiles_.lanes;
    primitives<T>().product(p);
  }

  void chain_chunk(int64_t first, int64_t steps) {
    const TileEvaluator<T>& program = tiles_.program();
    const Program& code = program.program();
    Chain<T> c;
    c.score = program.reals(code.score);
    c.weight = program.reals(code.weight);
    c.keep = program.integers(code.keep);
    c.counted = program.integers(code.counted);
    c.dp = dp_ + first * kLanes;
    c.rows_in_lanes = by_query_;
    c.lse = by_query_ ? lane_lse_ : lse_ + tiles_.first_step + first;
    c.delta = by_query_ ? lane_delta_ : delta_ + tiles_.first_step + first;
    c.pw = value_sum_ != nullptr ? dp_ + first * kLanes : nullptr;
    c.ds = ds_;
    c.dw = dw_;
    c.steps = steps;
    c.lanes = tiles_.lanes;
    primitives<T>().chain(c);
    if (!tiles_.masked()) return;
    copy_mask(keep_ + first * kLanes, c.keep, steps);
    if (live_ != keep_) copy_mask(live_ + first * kLanes, program.integers(code.live), steps);
  }

  void copy_mask(int32_t* to, View<int32_t> from, int64_t steps) const {
    for (int64_t s = 0; s < steps; ++s) std::copy_n(from.data + s * from.step, tiles_.lanes, to + s * kLanes);
  }

  void combine(const Derivative& derivative, T* out, int64_t steps) {
    const TileEvaluator<T>& program = tiles_.program();
    Combine<T> c;
    c.ds = ds_;
    c.dw = dw_;
    c.f = program.reals(derivative.score);
    c.g = program.reals(derivative.weight);
    c.live = program.integers(program.program().live);
    c.out = out;
    c.steps = steps;
    c.lanes = tiles_.lanes;
    primitives<T>().combine(c);
  }

  void slopes_of_chunk(int64_t first, int64_t steps) {
    for (size_t d = 0; d < slopes_.size(); ++d) {
      if (slopes_[d] != nullptr) {
        combine(tiles_.program().program().derivatives[d], slopes_[d] + first * kLanes, steps);
      }
    }
  }

  void captures_of_chunk(const CaptureSink& sink, int64_t steps) {
    const auto& derivatives = tiles_.program().program().derivatives;
    for (size_t i = plan_.dots.size(); i < derivatives.size(); ++i) {
      combine(derivatives[i], terms_, steps);
      for (size_t c = 0; c < sink.schedule->wanted().size(); ++c) {
        const WantedCapture& w = sink.schedule->wanted()[c];
        if (w.capture->name != derivatives[i].leaf.node().name) continue;
        if (sink.schedule->buffered(c)) {
          scatter(tiles_.program(), derivatives[i], w, terms_, steps, tiles_.count, sink.buffers->of(sink.unit, c));
        } else {
          scatter(tiles_.program(), derivatives[i], w, terms_, steps, tiles_.count,
                  static_cast<T*>(w.capture->gradient));
        }
      }
    }
  }

  void add_product(T* sum, const SideArray<T>& side, const T* tile, const int32_t* mask) {
    accumulate(sum, side.at(tiles_.batch, tiles_.head, tiles_.first_step), side.array.row, side.array.column,
               side.width, tile, mask, tiles_.steps, tiles_.lanes, static_cast<const T*>(nullptr));
  }

  void write_sums() {
    write(lane_value_, value_sum_);
    for (size_t d = 0; d < sums_.size(); ++d) write(tiles_.lane_side(d), sums_[d]);
  }

  void write(const SideArray<T>& side, const T* sum) {
    if (sum == nullptr) return;
    add_lanes(side.gradient_at(tiles_.batch, tiles_.head, tiles_.first_lane), side.columns, sum, tiles_.count,
              side.width);
  }

  const Plan<T>& plan_;
  const bool by_query_;
  Tiles<T> tiles_;
  const RowTerms<T>& rows_;
  SideArray<T> lane_value_, step_value_;  // grad_o and v, or v and grad_o
  T *packed_value_ = nullptr, *dp_ = nullptr, *ds_ = nullptr, *dw_ = nullptr, *terms_ = nullptr, *value_sum_ = nullptr;
  std::vector<T*> slopes_, sums_;  // of each dot: d / d dot of a block; gradient of the lane side
  int32_t *keep_ = nullptr, *live_ = nullptr;
  const T *lse_ = nullptr, *delta_ = nullptr;
  alignas(64) T lane_lse_[kLanes], lane_delta_[kLanes];
};

}  // namespace regard::kernels
