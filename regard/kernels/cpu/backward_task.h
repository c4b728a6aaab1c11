#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "regard/kernels/cpu/capture_gradient.h"
#include "regard/kernels/cpu/gradient_rows.h"
#include "regard/kernels/cpu/row_terms.h"
#include "regard/kernels/cpu/tiles.h"

namespace regard::kernels {

/// Where a task adds the gradients of captured tensors; buffers of its unit, or the tensors themselves.
struct CaptureSink {
  const GradientSchedule* schedule = nullptr;
  GradientBuffers* buffers = nullptr;
  int64_t unit = 0;
};

/// The pairs of some query heads of one batch entry and a range of key blocks. See backward.cpp for the products.
template <class T>
class BackwardTask {
 public:
  BackwardTask(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, const SideArray<T>& grad_o,
               const RowTerms<T>& rows, Arena& arena)
      : plan_(plan), arena_(arena), tiles_(plan, bound, map, arena), rows_(rows), grad_o_(grad_o) {
    dp_ = arena.take<T>(kSteps * kLanes);
    ds_ = arena.take<T>(kChunk * kLanes);
    if (plan.pairs.weight.defined()) dw_ = arena.take<T>(kChunk * kLanes);
    terms_ = arena.take<T>(kChunk * kLanes);
    for (const DotOperand<T>& dot : plan.dots) {
      const bool wanted = dot.q.gradient != nullptr || dot.k.gradient != nullptr;
      slopes_.push_back(!wanted ? nullptr : plan.plain ? dp_ : arena.take<T>(kSteps * kLanes));
    }
    const int64_t tiles = std::min(kSegmentTiles, map.cuts().queries.parts);
    for (const DotOperand<T>& dot : plan.dots) dots_.emplace_back(dot.q, tiles, dot.k.gradient != nullptr, arena);
    value_ = QuerySegment<T>(grad_o, tiles, plan.v.gradient != nullptr, arena);
    lse_ = arena.take<T>(tiles * kLanes);
    delta_ = arena.take<T>(tiles * kLanes);
    if (!rows.rate.empty()) rate_ = arena.take<T>(tiles * kLanes);
    if (!rows.slope.empty()) slope_ = arena.take<T>(tiles * kLanes);
    chain_ = primitives<T>().chain[static_cast<int>(plan.call.spec->normalizer.kind)];
    finite_keys_.resize(plan.dots.size());
    finite_queries_.resize(plan.dots.size());
    if (!plan.pairs.masked()) return;
    keep_ = arena.take<int32_t>(kSteps * kLanes);
    const bool apart = plan.pairs.counted.pointer() != plan.pairs.keep.pointer();
    live_ = apart ? arena.take<int32_t>(kSteps * kLanes) : keep_;
  }

  /// Query heads [head, end_head) against the key blocks [first, end): writes or adds their part of the gradients of
  /// q, k, v and operands. `part`: which of the buffers of dQ.
  void run(int64_t batch, int64_t head, int64_t end_head, int64_t first, int64_t end, const GradientRows<T>& rows,
           int64_t part) {
    KeyRows<T> values(plan_.v, rows.v, tiles_.map().cuts().keys, first, end, arena_);
    std::vector<KeyRows<T>> keys;
    for (size_t d = 0; d < plan_.dots.size(); ++d) {
      keys.emplace_back(plan_.dots[d].k, rows.dots[d].k, tiles_.map().cuts().keys, first, end, arena_);
    }
    for (int64_t h = head; h < end_head; ++h) {
      values.begin(batch, h);
      for (KeyRows<T>& k : keys) k.begin(batch, h);
      forget_keys();
      for (int64_t tile = 0; tile < tiles_.map().cuts().queries.parts; tile += kSegmentTiles) {
        begin_segment(batch, h, tile, std::min(tile + kSegmentTiles, tiles_.map().cuts().queries.parts), first, end);
        for (int64_t block = first; block < end; ++block) {
          for (int64_t t = tile; t < segment_end_; ++t) {
            if (used(t) && enter(t, block)) add_block(keys, values);
          }
        }
        for (size_t d = 0; d < dots_.size(); ++d) write_queries(d, rows.dots[d].q, part);
      }
      values.end();
      for (KeyRows<T>& k : keys) k.end();
    }
    values.finish();
    for (KeyRows<T>& k : keys) k.finish();
  }

  /// The gradients of captured tensors alone, for one tile of queries and all keys.
  void run_captures(int64_t batch, int64_t head, int64_t query_tile, const CaptureSink& sink) {
    begin_segment(batch, head, query_tile, query_tile + 1, 0, tiles_.map().cuts().keys.parts);
    for (int64_t block = 0; block < tiles_.map().cuts().keys.parts; ++block) {
      if (!enter(query_tile, block)) continue;
      multiply();
      for (int64_t first = 0; first < tiles_.steps; first += kChunk) {
        const int64_t steps = std::min(kChunk, tiles_.steps - first);
        chain_chunk(first, steps, false);
        captures_of_chunk(sink, steps);
      }
    }
  }

 private:
  /// Queries prepared at once: their packed copies (4 N D floats of 4096 queries) stay in the caches near the core.
  static constexpr int64_t kSegmentTiles = 64;

  void forget_keys() {
    if (!plan_.pairs.masked()) return;
    for (auto& known : finite_keys_) known.reset(tiles_.map().cuts().keys.parts);
    finite_values_.reset(tiles_.map().cuts().keys.parts);
  }

  bool used(int64_t tile) const { return used_[static_cast<size_t>(tile - segment_)] != 0; }

  /// Prepares the query tiles [first, end) that see some of the key blocks [first_block, end_block).
  void begin_segment(int64_t batch, int64_t head, int64_t first, int64_t end, int64_t first_block, int64_t end_block) {
    batch_ = batch;
    head_ = head;
    segment_ = first;
    segment_end_ = end;
    used_.resize(static_cast<size_t>(end - first));
    for (int64_t t = first; t < end; ++t) {
      const TileMap& map = tiles_.map();
      used_[static_cast<size_t>(t - first)] =
          map.first_block(batch, head, t) < end_block && map.end_block(batch, head, t) > first_block;
    }
    // With plain scores d score / d dot = scale: folded into dO^T and delta.
    const T factor = plan_.plain ? static_cast<T>(plan_.space.scale) : T(1);
    const T delta_factor = rows_.slope.empty() ? factor : T(1);  // terms of a z_score are scaled already
    const Cut& cut = tiles_.map().cuts().queries;
    for (size_t d = 0; d < dots_.size(); ++d) dots_[d].begin(batch, head, cut, first, end, used_, tiles_.query_scale());
    value_.begin(batch, head, cut, first, end, used_, factor);
    const int64_t row = (batch * plan_.call.H + head) * plan_.call.M;
    const T per_natural = 1 / tiles_.natural();
    for (int64_t t = first; t < end; ++t) {
      if (!used(t)) continue;
      // Lanes past the last query: their p must be 0.
      T *lse = lse_ + (t - first) * kLanes, *delta = delta_ + (t - first) * kLanes;
      std::fill_n(lse, kLanes, plan_.exponential ? std::numeric_limits<T>::infinity() : T(0));
      std::fill_n(delta, kLanes, T(0));
      for (int64_t l = 0; l < cut.end(t) - cut.begin(t); ++l) {
        const auto at = static_cast<size_t>(row + cut.begin(t) + l);
        lse[l] = rows_.lse[at] * per_natural;
        delta[l] = rows_.delta[at] * delta_factor;
      }
      if (rate_ != nullptr) begin_terms(rate_, rows_.rate, row, t);
      if (slope_ != nullptr) begin_terms(slope_, rows_.slope, row, t);
    }
    if (!plan_.pairs.masked()) return;
    for (auto& known : finite_queries_) known.reset(end - first);
    finite_grad_o_.reset(end - first);
  }

  /// Terms of the rows of a tile into its lanes; 0 past the last query.
  void begin_terms(T* lanes, const std::vector<T>& terms, int64_t row, int64_t tile) const {
    const Cut& cut = tiles_.map().cuts().queries;
    T* to = lanes + (tile - segment_) * kLanes;
    std::fill_n(to, kLanes, T(0));
    for (int64_t i = cut.begin(tile); i < cut.end(tile); ++i) *to++ = terms[static_cast<size_t>(row + i)];
  }

  bool enter(int64_t tile, int64_t block) {
    if (tiles_.batch != batch_ || tiles_.head != head_ || tile_ != tile || !begun_) {
      tiles_.begin(batch_, head_, tile);
      begun_ = true;
      tile_ = tile;
    }
    if (!tiles_.enter(block)) return false;
    at_ = tile - segment_;
    return true;
  }

  /// S^T of every dot, dP^T = V dO^T.
  void multiply() {
    for (size_t d = 0; d < dots_.size(); ++d) tiles_.multiply(d, dots_[d].packed(at_), nullptr);
    tiles_.multiply(plan_.v, value_.packed(at_), dp_);
  }

  void add_block(std::vector<KeyRows<T>>& keys, KeyRows<T>& values) {
    multiply();
    const bool clean = !tiles_.masked() || all_finite();
    if (tiles_.plain()) {
      chain_chunk(0, tiles_.steps, false);
    } else {
      for (int64_t first = 0; first < tiles_.steps; first += kChunk) {
        const int64_t steps = std::min(kChunk, tiles_.steps - first);
        chain_chunk(first, steps, !clean);
        if (!plan_.plain) slopes_of_chunk(first, steps);
      }
    }
    const int32_t* mask = clean ? nullptr : keep_;
    const T* weights = plan_.plain ? tiles_.scores(0) : dp_;
    if (values.wanted()) add_keys(values, value_, weights, mask);
    mask = clean ? nullptr : live_;
    for (size_t d = 0; d < dots_.size(); ++d) {
      if (keys[d].wanted()) add_keys(keys[d], dots_[d], slopes_[d], mask);
      if (plan_.dots[d].q.gradient != nullptr) add_queries(d, mask);
    }
  }

  /// A hidden pair's weight and slope are 0, but 0 times NaN is not.
  bool all_finite() {
    const Cut& cut = tiles_.map().cuts().keys;
    const int64_t block = tiles_.block, key = cut.begin(block), keys = cut.end(block) - key;
    const int64_t query = tiles_.first_query, count = tiles_.count;
    const auto finite = [](FiniteBlocks<T>& known, int64_t at, const SideArray<T>& side, const T* rows,
                           int64_t length) {
      return known.at(at, rows, length, side.width, side.array.row, side.array.column);
    };
    bool clean = finite(finite_values_, block, plan_.v, plan_.v.at(batch_, head_, key), keys) &&
                 finite(finite_grad_o_, at_, grad_o_, grad_o_.at(batch_, head_, query), count);
    for (size_t d = 0; d < dots_.size() && clean; ++d) {
      const SideArray<T>&q = plan_.dots[d].q, &k = plan_.dots[d].k;
      clean = finite(finite_keys_[d], block, k, k.at(batch_, head_, key), keys) &&
              finite(finite_queries_[d], at_, q, q.at(batch_, head_, query), count);
    }
    return clean;
  }

  /// P and dS of one chunk, and its masks where they are kept. Plain: in place of the scores and of dP.
  void chain_chunk(int64_t first, int64_t steps, bool keeps_masks) {
    const int64_t at = first * kLanes;
    Chain<T> c;
    c.dp = dp_ + at;
    c.lse = lse_ + at_ * kLanes;
    c.delta = delta_ + at_ * kLanes;
    if (rate_ != nullptr) c.rate = rate_ + at_ * kLanes;
    if (slope_ != nullptr) c.slope = slope_ + at_ * kLanes;
    c.unit = tiles_.unit();
    c.steps = steps;
    c.lanes = tiles_.lanes;
    View<int32_t> live;
    if (plan_.plain && tiles_.banded()) {
      c.score = {tiles_.scores(0) + at, kLanes};
      if (tiles_.hides(first)) c.keep = live = tiles_.band(first, steps);
    } else if (!plan_.plain || tiles_.hides(first)) {
      tiles_.run(first, steps);
      const TileEvaluator<T>& program = tiles_.program();
      const Program& code = program.program();
      c.score = program.reals(code.score);
      c.weight = program.reals(code.weight);
      c.keep = program.integers(code.keep);
      c.counted = program.integers(code.counted);
      live = program.integers(code.live);
    } else {
      c.score = {tiles_.scores(0) + at, kLanes};
    }
    c.pw = plan_.plain ? tiles_.scores(0) + at : dp_ + at;
    c.ds = plan_.plain ? dp_ + at : ds_;
    c.dw = dw_;
    chain_(c);
    if (!keeps_masks) return;
    tiles_.copy_mask(keep_ + at, c.keep, steps);
    if (live_ != keep_) tiles_.copy_mask(live_ + at, live, steps);
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

  /// Rows of keys (steps x width) += tile (steps x queries) rows of queries (queries x width).
  void add_keys(KeyRows<T>& sums, const QuerySegment<T>& queries, const T* tile, const int32_t* mask) {
    Product<T> p;
    p.rows = tiles_.steps;
    p.depth = tiles_.count;
    p.lanes = sums.padded();
    p.a = tile;
    p.a_row = kLanes;
    p.a_depth = 1;
    p.b = queries.row(tiles_.first_query);
    p.b_row = queries.row_stride();
    p.c = sums.rows(tiles_.block, tiles_.first_key, tiles_.steps, p.mode);
    p.c_row = sums.row_stride();
    mask == nullptr ? primitives<T>().product(p) : primitives<T>().masked_product(p, {mask, kLanes, 1, 0});
  }

  /// dQ^T (width x queries) += K^T dS^T.
  void add_queries(size_t dot, const int32_t* mask) {
    typename Product<T>::Mode mode;
    T* const sum = dots_[dot].sum(at_, mode);
    tiles_.accumulate(plan_.dots[dot].k, slopes_[dot], mask, sum, mode);
  }

  void write_queries(size_t dot, const GradientSide<T>& to, int64_t part) {
    const SideArray<T>& q = plan_.dots[dot].q;
    if (q.gradient == nullptr) return;
    const Cut& cut = tiles_.map().cuts().queries;
    for (int64_t t = segment_; t < segment_end_; ++t) {
      Transpose<T> turn;
      turn.packed = dots_[dot].finished_sum(t - segment_);
      turn.array = to.part(part) + (q.gradient_at(batch_, head_, cut.begin(t)) - q.gradient);
      turn.row = q.columns;
      turn.count = cut.end(t) - cut.begin(t);
      turn.width = q.width;
      turn.add = !to.exclusive;
      if (turn.packed != nullptr) {
        primitives<T>().unpack(turn);
      } else if (to.exclusive) {
        std::fill_n(turn.array, turn.count * q.columns, T(0));
      }
    }
  }

  const Plan<T>& plan_;
  Arena& arena_;
  Tiles<T> tiles_;
  const RowTerms<T>& rows_;
  const SideArray<T> grad_o_;
  std::vector<QuerySegment<T>> dots_;
  QuerySegment<T> value_;
  T *lse_ = nullptr, *delta_ = nullptr;   // of the segment, scaled
  T *rate_ = nullptr, *slope_ = nullptr;  // the same, where the normalizer has them
  void (*chain_)(const Chain<T>&) = nullptr;
  T *dp_ = nullptr, *ds_ = nullptr, *dw_ = nullptr, *terms_ = nullptr;
  std::vector<T*> slopes_;  // d / d dot of a block
  int32_t *keep_ = nullptr, *live_ = nullptr;
  std::vector<FiniteBlocks<T>> finite_keys_, finite_queries_;
  FiniteBlocks<T> finite_values_, finite_grad_o_;
  int64_t batch_ = 0, head_ = 0, segment_ = 0, segment_end_ = 0, tile_ = 0, at_ = 0;
  bool begun_ = false;
  std::vector<char> used_;  // by tile of the segment
};

}  // namespace regard::kernels
