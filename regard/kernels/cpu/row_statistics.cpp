#include "regard/kernels/cpu/row_statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/forward_task.h"

namespace regard::kernels {
namespace {

/// `sum`: at the floor the log-sum-exp cannot tell whether the sum was below it.
template <class T>
bool needed(const Plan<T>& plan) {
  using Kind = Normalizer::Kind;
  const Normalizer& normalizer = plan.call.spec->normalizer;
  if (normalizer.kind == Kind::z_score) return true;
  if (normalizer.kind == Kind::sum) return normalizer.floor > 0;
  return normalizer.divisor == Normalizer::Divisor::kept && (plan.pairs.masked() || plan.blocks || plan.sequences);
}

template <class T>
bool at_floor(const Normalizer& normalizer, const T* lse, int64_t count) {
  const T lowest = std::log(static_cast<T>(normalizer.floor));
  return std::any_of(lse, lse + count, [=](T x) { return x <= lowest; });
}

}  // namespace

template <class T>
RowStatistics<T> row_statistics(const Plan<T>& plan, const AttentionGradient<T>& gradient) {
  const Attention<T>& call = plan.call;
  const Normalizer& normalizer = call.spec->normalizer;
  RowStatistics<T> rows;
  if (!needed(plan)) return rows;
  const auto count = static_cast<size_t>(call.B * call.H * call.M);
  rows.sum.assign(count, std::numeric_limits<T>::infinity());
  if (normalizer.kind == Normalizer::Kind::z_score) {
    for (std::vector<T>* all : {&rows.mean, &rows.square, &rows.residual, &rows.slopes, &rows.centered})
      all->resize(count);
  }
  const BoundPrograms bound = bind_programs(plan, Side::queries, Derivatives::none);
  const TileLayout layout = plan.layout();
  const TileMap map(plan.pairs, plan.space, call.captures, forward_cuts(call.M, call.N, plan.pairs.masked(), layout),
                    layout);
  const Cut& queries = map.cuts().queries;
  parallel_for(call.B * call.H * queries.parts, [&](int64_t task) {
    const int64_t tile = task % queries.parts, head = task / queries.parts;
    const int64_t first = queries.begin(tile), row = head * call.M + first;
    if (normalizer.kind == Normalizer::Kind::sum &&
        !at_floor(normalizer, gradient.lse + row, queries.end(tile) - first))
      return;
    ForwardTask<T> forward(plan, bound, map, fresh_arena(), ForwardTask<T>::Purpose::statistics);
    forward.measure(gradient.grad_o);
    forward.run(head / call.H, head % call.H, tile, 0, map.cuts().keys.parts);
    forward.leave_statistics(rows);
  });
  return rows;
}

template RowStatistics<float> row_statistics(const Plan<float>&, const AttentionGradient<float>&);
template RowStatistics<double> row_statistics(const Plan<double>&, const AttentionGradient<double>&);

}  // namespace regard::kernels
