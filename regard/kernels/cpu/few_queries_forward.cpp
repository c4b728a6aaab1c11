// The forward for few queries a key head; few_queries.inl says how a block of keys is read. One task absorbs one chunk
// of the keys of a (batch, key head) into a state of each row (output, maximum, sum). The task that comes last merges
// the states of its head, in the order of the chunks whoever it is.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/few_queries.h"
#include "regard/kernels/cpu/few_queries_tile.h"
#include "regard/kernels/cpu/routes.h"

namespace regard::kernels {
namespace {

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

template <class T, class S>
class FewForward {
 public:
  explicit FewForward(const FewPlan<T, S>& plan)
      : plan_(plan),
        call_(plan.call),
        width_(padded_width(call_.Dv)),
        states_(new T[static_cast<size_t>(plan.chunks.tasks() * plan.rows * (width_ + 2))]),
        left_(new std::atomic<int64_t>[static_cast<size_t>(plan.chunks.units())]) {
    for (int64_t unit = 0; unit < plan.chunks.units(); ++unit) left_[unit] = plan.chunks.chunks(unit);
  }

  void run() {
    parallel_for(plan_.chunks.tasks(), [this](int64_t task) {
      const int64_t unit = plan_.chunks.unit_of(task);
      absorb_chunk(unit, task);
      if (left_[unit].fetch_sub(1) == 1) merge(unit);
    });
  }

 private:
  /// Output (width_), maximum, sum of one row after one task.
  T* state(int64_t task, int64_t r) const { return states_.get() + (task * plan_.rows + r) * (width_ + 2); }

  void absorb_chunk(int64_t unit, int64_t task) {
    for (int64_t r = 0; r < plan_.rows; ++r) {
      std::fill_n(state(task, r), width_, T(0));
      state(task, r)[width_] = kNothing<T>;
      state(task, r)[width_ + 1] = 0;
    }
    Arena& arena = fresh_arena();
    FewTile<T, S> tile(plan_, arena);
    T* p = arena.take<T>(plan_.rows * kLanes);
    tile.begin(unit / call_.Hk, unit % call_.Hk);
    const int64_t begin = plan_.chunks.begin(unit, task), end = plan_.chunks.begin(unit, task + 1);
    KeyBlock block, next;
    if (begin < end) next = plan_.chunks.block(unit, begin);
    for (int64_t n = begin; n < end; ++n) {
      block = next;
      if (n + 1 < end) next = plan_.chunks.block(unit, n + 1);
      tile.enter(block, n + 1 < end ? &next : nullptr);
      absorb_block(tile, task, p);
    }
  }

  void absorb_block(const FewTile<T, S>& tile, int64_t task, T* p) {
    const FewPrimitives<T>& run = few_primitives<T>();
    for (int64_t r = 0; r < plan_.rows; ++r) {
      T* to = state(task, r);
      run.absorb(
          {tile.row(r), plan_.unit, tile.block().count, p + r * kLanes, to + width_, to + width_ + 1, to, width_});
    }
    for (size_t n = 0; n < tile.pieces().size(); ++n) {
      const FewPiece& piece = tile.pieces()[n];
      const FewSums<T> x{state(task, 0), width_ + 2,           plan_.rows,  p + piece.first,
                         piece.values,   tile.after_values(n), piece.count, call_.Dv};
      const int storage = static_cast<int>(x.values.storage);
      if (!tile.masked() || run.finite[storage](x.values, x.count, x.width)) {
        run.sums[storage](x);
      } else {
        sum_kept(tile, x, piece.first);
      }
    }
  }

  /// Pair by pair, because 0 times a hidden NaN is NaN.
  void sum_kept(const FewTile<T, S>& tile, const FewSums<T>& all, int64_t first) {
    FewSums<T> one = all;
    one.ahead = {};
    one.row_count = one.count = 1;
    for (int64_t r = 0; r < plan_.rows; ++r) {
      one.sums = all.sums + r * all.sum_stride;
      for (int64_t j = 0; j < all.count; ++j) {
        if (!tile.keeps(r, first + j)) continue;
        one.weights = all.weights + r * kLanes + j;
        one.values = part_of<T, S>(all.values, j, 0);
        few_primitives<T>().sums[static_cast<int>(all.values.storage)](one);
      }
    }
  }

  void merge(int64_t unit) {
    for (int64_t r = 0; r < plan_.rows; ++r) merge_row(unit, r);
  }

  /// The states of all chunks and the sinks, in order.
  void merge_row(int64_t unit, int64_t r) {
    const int64_t first = plan_.chunks.first_task(unit), end = plan_.chunks.first_task(unit + 1);
    const int64_t batch = unit / call_.Hk, head = unit % call_.Hk * plan_.group + r / call_.M, i = r % call_.M;
    const T* sinks = call_.sinks + head * call_.sink_count;
    const T log2_of_natural = std::numbers::log2e_v<T> / plan_.unit;  // natural logarithms to the scores' unit
    T maximum = kNothing<T>, sum = 0;
    for (int64_t task = first; task < end; ++task) maximum = std::max(maximum, state(task, r)[width_]);
    for (int64_t s = 0; s < call_.sink_count; ++s) maximum = std::max(maximum, sinks[s] * log2_of_natural);
    const T base = maximum == kNothing<T> ? T(0) : maximum;
    for (int64_t s = 0; s < call_.sink_count; ++s) sum += std::exp2((sinks[s] * log2_of_natural - base) * plan_.unit);
    T* total = state(first, r);
    for (int64_t task = first; task < end; ++task) {
      const T* part = state(task, r);
      const T factor = std::exp2((part[width_] - base) * plan_.unit);
      sum += part[width_ + 1] * factor;
      if (task == first) {
        for (int64_t d = 0; d < call_.Dv; ++d) total[d] *= factor;
      } else {
        for (int64_t d = 0; d < call_.Dv; ++d) total[d] += part[d] * factor;
      }
    }
    const T inverse = sum == 0 ? T(0) : 1 / sum;
    S* o = call_.o.data + batch * call_.o.batch + head * call_.o.head + i * call_.o.row;
    for (int64_t d = 0; d < call_.Dv; ++d) o[d * call_.o.column] = stored<S>(sum == 0 ? T(0) : total[d] * inverse);
    call_.lse[(batch * call_.H + head) * call_.M + i] = sum == 0 ? kNothing<T> : base / log2_of_natural + std::log(sum);
  }

  const FewPlan<T, S>& plan_;
  const Attention<T, S>& call_;
  const int64_t width_;  // of an output row, padded
  const std::unique_ptr<T[]> states_;
  const std::unique_ptr<std::atomic<int64_t>[]> left_;  // chunks of a unit not absorbed yet
};

}  // namespace

template <class T, class S>
void few_queries_forward(const Attention<T, S>& call) {
  count_route(Route::few_queries);
  const FewPlan<T, S> plan(call, false);
  FewForward<T, S>(plan).run();
}

#define REGARD_INSTANTIATE(T, S) template void few_queries_forward(const Attention<T, S>&);
REGARD_INSTANTIATE(float, float)
REGARD_INSTANTIATE(float, bfloat16)
REGARD_INSTANTIATE(float, float16)
REGARD_INSTANTIATE(double, double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
