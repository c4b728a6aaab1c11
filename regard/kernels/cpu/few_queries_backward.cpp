// The backward for few queries a key head, one pass over the keys. For each block of keys
//
//     s = q K^T, dp = dO V^T          read K and V, once
//     p, ds                           from the final log-sum-exp
//     dV = p^T dO, dK = ds^T q        written once, by the one task that has these keys
//     dq += ds K                      K again, from the cache
//
// dq of a chunk is a part of its own; the task that comes last adds the parts of its head, in the order of the chunks.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <numbers>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/few_queries.h"
#include "regard/kernels/cpu/few_queries_tile.h"
#include "regard/kernels/cpu/routes.h"
#include "regard/kernels/cpu/row_terms.h"

namespace regard::kernels {
namespace {

/// lse and rowsum(grad_o o) - grad_lse of every row; see row_terms.h.
template <class T, class S>
RowTerms<T> terms_of(const Attention<T, S>& call, const AttentionGradient<T, S>& g) {
  RowTerms<T> terms;
  for (int64_t n = 0; n < call.B * call.H * call.M; ++n) {
    const int64_t b = n / call.M / call.H, h = n / call.M % call.H, i = n % call.M;
    const S* grad_o = g.grad_o.data + b * g.grad_o.batch + h * g.grad_o.head + i * g.grad_o.row;
    const S* o = g.o.data + b * g.o.batch + h * g.o.head + i * g.o.row;
    const bool empty = g.lse[n] == -std::numeric_limits<T>::infinity();
    T delta = empty || g.grad_lse == nullptr ? T(0) : -g.grad_lse[n];
    for (int64_t d = 0; d < call.Dv && !empty; ++d) {
      const T value = element<T>(o[d * g.o.column]);
      if (value != 0) delta += element<T>(grad_o[d * g.grad_o.column]) * value;
    }
    terms.lse.push_back(empty ? std::numeric_limits<T>::infinity() : g.lse[n]);
    terms.delta.push_back(delta);
  }
  return terms;
}

/// Scratch of one task and the tile it fills.
template <class T, class S>
struct FewGradientTile {
  FewTile<T, S> scores;
  T *grad_o, *dp, *pw, *ds, *dw = nullptr;
  std::vector<T*> slopes;  ///< d / d dot, of each
  bool finite_rows = true;

  FewGradientTile(const FewPlan<T, S>& plan, Arena& arena) : scores(plan, arena) {
    const int64_t pairs = plan.rows * kLanes;
    grad_o = arena.take<T>(plan.rows * padded_width(plan.call.Dv));
    dp = arena.take<T>(pairs);
    pw = arena.take<T>(pairs);
    ds = arena.take<T>(pairs);
    if (plan.pairs.weight.defined()) dw = arena.take<T>(pairs);
    for (size_t d = 0; d < plan.dots.size(); ++d) slopes.push_back(plan.plain ? ds : arena.take<T>(pairs));
  }
};

template <class T, class S>
class FewBackward {
 public:
  FewBackward(const FewPlan<T, S>& plan, const AttentionGradient<T, S>& gradient, const RowTerms<T>& terms)
      : plan_(plan), call_(plan.call), gradient_(gradient), terms_(terms) {
    for (const FewDot& dot : plan.dots) {
      part_begin_.push_back(part_size_);
      part_size_ += plan.rows * padded_width(dot.width);
    }
    parts_.reset(new T[static_cast<size_t>(plan.chunks.tasks() * part_size_)]);
    left_.reset(new std::atomic<int64_t>[static_cast<size_t>(plan.chunks.units())]);
    for (int64_t unit = 0; unit < plan.chunks.units(); ++unit) left_[unit] = plan.chunks.chunks(unit);
  }

  void run() {
    parallel_for(plan_.chunks.tasks(), [this](int64_t task) {
      const int64_t unit = plan_.chunks.unit_of(task);
      add_chunk(unit, task);
      if (left_[unit].fetch_sub(1) == 1 && gradient_.q != nullptr) merge(unit);
    });
  }

 private:
  using Tile = FewGradientTile<T, S>;

  /// (rows x padded_width(width)) of one dot: the sum of ds K over the task's keys.
  T* part(int64_t task, size_t dot) const { return parts_.get() + task * part_size_ + part_begin_[dot]; }

  void add_chunk(int64_t unit, int64_t task) {
    std::fill_n(parts_.get() + task * part_size_, part_size_, T(0));
    Arena& arena = fresh_arena();
    Tile tile(plan_, arena);
    const int64_t batch = unit / call_.Hk, head = unit % call_.Hk;
    tile.scores.begin(batch, head);
    pack_rows(plan_, gradient_.grad_o, batch, head, {0, call_.Dv}, T(1), tile.grad_o);
    tile.finite_rows = finite_rows(tile);
    const int64_t begin = plan_.chunks.begin(unit, task), end = plan_.chunks.begin(unit, task + 1);
    KeyBlock block, next;
    if (begin < end) next = plan_.chunks.block(unit, begin);
    for (int64_t n = begin; n < end; ++n) {
      block = next;
      if (n + 1 < end) next = plan_.chunks.block(unit, n + 1);
      tile.scores.enter(block, n + 1 < end ? &next : nullptr);
      chain(tile, unit);
      add_block(tile, unit, task);
    }
  }

  bool finite_rows(const Tile& tile) const {
    const auto test = few_primitives<T>().finite[static_cast<int>(Storage::same)];
    bool all = test({tile.grad_o, padded_width(call_.Dv), Storage::same}, plan_.rows, call_.Dv);
    for (size_t d = 0; d < plan_.dots.size(); ++d) {
      const int64_t width = plan_.dots[d].width;
      all = all && test({tile.scores.queries(d), padded_width(width), Storage::same}, plan_.rows, width);
    }
    return all;
  }

  /// dp of the block, then p, ds and d / d dot.
  void chain(const Tile& tile, int64_t unit) const {
    const FewPrimitives<T>& run = few_primitives<T>();
    const FewArray values = tile.scores.values();
    const int64_t count = tile.scores.block().count;
    run.scores[static_cast<int>(values.storage)]({tile.grad_o, padded_width(call_.Dv), plan_.rows, values,
                                                  tile.scores.after_values(), count, call_.Dv, tile.dp});
    const T of_natural = std::numbers::log2e_v<T> / plan_.unit;
    for (int64_t r = 0; r < plan_.rows; ++r) {
      const auto n = static_cast<size_t>((unit * plan_.group + r / call_.M) * call_.M + r % call_.M);
      const int64_t at = r * kLanes;
      FewChain<T> c;
      c.row = tile.scores.row(r);
      c.unit = plan_.unit;
      c.lse = terms_.lse[n] * of_natural;
      c.delta = terms_.delta[n];
      c.slope = plan_.plain ? std::numbers::ln2_v<T> : T(1);  // packed queries carry scale log2(e)
      c.count = count;
      c.dp = tile.dp + at;
      c.pw = tile.pw + at;
      c.ds = tile.ds + at;
      c.dw = tile.dw == nullptr ? nullptr : tile.dw + at;
      run.chain(c);
      for (size_t d = 0; d < plan_.dots.size() && !plan_.plain; ++d) {
        run.combine({c.row, c.ds, c.dw, tile.scores.score_slope(d, r), tile.scores.weight_slope(d, r), count,
                     tile.slopes[d] + at});
      }
    }
  }

  void add_block(const Tile& tile, int64_t unit, int64_t task) const {
    const FewArray keys = tile.scores.keys(), values = tile.scores.values();
    const FewPrimitives<T>& run = few_primitives<T>();
    const int64_t count = tile.scores.block().count;
    if (tile.scores.masked() &&
        !(tile.finite_rows && run.finite[static_cast<int>(keys.storage)](keys, count, call_.Dh) &&
          run.finite[static_cast<int>(values.storage)](values, count, call_.Dv))) {
      add_kept(tile, unit, task);
      return;
    }
    add_value_gradient(tile, unit, 0, plan_.rows, 0, count, false);
    for (size_t d = 0; d < plan_.dots.size(); ++d) add_dot_gradients(tile, d, unit, task, 0, plan_.rows, 0, count);
  }

  /// Pair by pair, because 0 times a hidden NaN is NaN.
  void add_kept(const Tile& tile, int64_t unit, int64_t task) const {
    for (int64_t j = 0; j < tile.scores.block().count; ++j) {
      for (int64_t r = 0; r < plan_.rows; ++r) {
        const bool kept = tile.scores.keeps(r, j);
        if (kept) add_value_gradient(tile, unit, r, 1, j, 1, true);
        for (size_t d = 0; d < plan_.dots.size() && (kept || tile.scores.counts(r, j)); ++d) {
          add_dot_gradients(tile, d, unit, task, r, 1, j, 1, true);
        }
      }
    }
  }

  /// dV of keys [j, j + count) of the block from rows [r, r + rows).
  void add_value_gradient(const Tile& tile, int64_t unit, int64_t r, int64_t rows, int64_t j, int64_t count,
                          bool add) const {
    if (gradient_.v == nullptr) return;
    const int64_t key = unit * call_.N + tile.scores.block().first + j, stride = padded_width(call_.Dv);
    few_primitives<T>().outer({gradient_.v + key * call_.Dv, call_.Dv, tile.pw + r * kLanes + j,
                               tile.grad_o + r * stride, stride, rows, count, call_.Dv, add});
  }

  /// dK of keys [j, j + count) of the block from rows [r, r + rows), and dq of these rows from these keys.
  void add_dot_gradients(const Tile& tile, size_t d, int64_t unit, int64_t task, int64_t r, int64_t rows, int64_t j,
                         int64_t count, bool add = false) const {
    const FewDot dot = plan_.dots[d];
    const int64_t key = unit * call_.N + tile.scores.block().first + j, stride = padded_width(dot.width);
    const T* slopes = tile.slopes[d] + r * kLanes + j;
    if (gradient_.k != nullptr) {
      few_primitives<T>().outer({gradient_.k + key * call_.Dh + dot.begin, call_.Dh, slopes,
                                 tile.scores.queries(d) + r * stride, stride, rows, count, dot.width,
                                 add || plan_.dots.size() > 1});
    }
    if (gradient_.q == nullptr) return;
    const FewArray keys = part_of<T, S>(tile.scores.keys(), j, dot.begin);
    few_primitives<T>().sums[static_cast<int>(keys.storage)](
        {part(task, d) + r * stride, stride, rows, slopes, keys, {}, count, dot.width});
  }

  void merge(int64_t unit) const {
    const int64_t first = plan_.chunks.first_task(unit), end = plan_.chunks.first_task(unit + 1);
    for (size_t d = 0; d < plan_.dots.size(); ++d) {
      const FewDot dot = plan_.dots[d];
      for (int64_t task = first; task < end; ++task) {
        for (int64_t r = 0; r < plan_.rows; ++r) {
          const T* from = part(task, d) + r * padded_width(dot.width);
          T* to = gradient_.q + (unit * plan_.rows + r) * call_.Dh + dot.begin;  // rows of a unit lie together
          for (int64_t c = 0; c < dot.width; ++c) to[c] += from[c] * plan_.factor;
        }
      }
    }
  }

  const FewPlan<T, S>& plan_;
  const Attention<T, S>& call_;
  const AttentionGradient<T, S>& gradient_;
  const RowTerms<T>& terms_;
  std::vector<int64_t> part_begin_;  // of each dot in a task's part
  int64_t part_size_ = 0;
  std::unique_ptr<T[]> parts_;
  std::unique_ptr<std::atomic<int64_t>[]> left_;  // chunks of a unit not added yet
};

}  // namespace

template <class T, class S>
void few_queries_backward(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient) {
  count_route(Route::few_queries);
  const FewPlan<T, S> plan(call, true);
  const RowTerms<T> terms = terms_of(call, gradient);
  if (gradient.sinks != nullptr && call.sinks != nullptr) sink_gradients(sizes_of(call), terms, gradient.sinks);
  if (gradient.q != nullptr || gradient.k != nullptr || gradient.v != nullptr) {
    FewBackward<T, S>(plan, gradient, terms).run();
  }
}

#define REGARD_INSTANTIATE(T, S) \
  template void few_queries_backward(const Attention<T, S>&, const AttentionGradient<T, S>&);
REGARD_INSTANTIATE(float, float)
REGARD_INSTANTIATE(float, bfloat16)
REGARD_INSTANTIATE(float, float16)
REGARD_INSTANTIATE(double, double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
