#include "regard/kernels/cpu/row_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/normalizer_rows.h"
#include "regard/kernels/cpu/program_cache.h"

namespace regard::kernels {
namespace {

constexpr int64_t kRows = 256;  // rows a task: some microseconds

/// The terms of one row whose weights have no exponentials. `delta`: rowsum(grad_o o) - grad_lse so far.
template <class T>
void rate_terms(const Attention<T>& call, const RowStatistics<T>& statistics, size_t row, T lse,
                bool alone_is_constant, RowTerms<T>& rows) {
  const Normalizer& normalizer = call.spec->normalizer;
  const T sum = statistics.sum.empty() ? static_cast<T>(call.N) : statistics.sum[row];
  T &rate = rows.rate[row], &delta = rows.delta[row];
  switch (normalizer.kind) {
    case Normalizer::Kind::sum: {
      rate = lse == -std::numeric_limits<T>::infinity() ? T(1) : std::exp(-lse);
      const bool below = !statistics.sum.empty() && sum < static_cast<T>(normalizer.floor);
      delta = below ? T(0) : delta * rate;
      break;
    }
    case Normalizer::Kind::z_score: {
      const T n = std::max(T(1), sum), variance = statistics.square[row] / n;
      // One key alone deviates from nothing, whatever it scores: no slope, and no rounding of one.
      rate = alone_is_constant && sum <= 1 ? T(0) : z_score_rate(normalizer, variance, n);
      const T bend = normalizer.detach ? T(0) : rate * z_score_bend(normalizer, rate, variance, n);
      // Centered by the mean without its rounding, or slopes would not add up to 0 over the row: rows of few keys that
      // are nearly alike have nothing else left.
      const T rest = statistics.residual[row], slopes = statistics.slopes[row];
      rows.slope[row] = (statistics.centered[row] - rest * slopes) * bend / n;
      rows.lse[row] = statistics.mean[row];
      delta = slopes / n - (rate > 0 ? rows.slope[row] * rest / rate : T(0));
      break;
    }
    default:
      rate = divisor_rate(normalizer, call.N, sum);
  }
}

}  // namespace

template <class T>
RowTerms<T> row_terms(const Attention<T>& call, const AttentionGradient<T>& g, const RowStatistics<T>& statistics) {
  const Normalizer& normalizer = call.spec->normalizer;
  const bool exponential = is_exponential(normalizer);
  // A constant denominator takes nothing off the slopes; what a z-score takes off is in the statistics.
  const bool constant = normalizer.detach || normalizer.kind == Normalizer::Kind::z_score;
  const bool has_lse = exponential || normalizer.kind == Normalizer::Kind::sum;  // else it is 0, whatever its gradient
  const PairExpressions pairs = expressions_of(*call.spec);
  const bool alone_is_constant = !normalizer.detach && pairs.counted.pointer() == pairs.keep.pointer();
  RowTerms<T> rows;
  rows.lse.resize(static_cast<size_t>(call.B * call.H * call.M));
  rows.delta.resize(rows.lse.size());
  if (!exponential) rows.rate.resize(rows.lse.size());
  if (normalizer.kind == Normalizer::Kind::z_score) rows.slope.resize(rows.lse.size());
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t blocks = (call.M + kRows - 1) / kRows;
  parallel_for(call.B * call.H * blocks, [&](int64_t task) {
    const int64_t b = task / blocks / call.H, h = task / blocks % call.H, first = task % blocks * kRows;
    for (int64_t i = first; i < std::min(call.M, first + kRows); ++i) {
      const int64_t at = (b * call.H + h) * call.M + i;
      const T* grad_o = g.grad_o.data + b * g.grad_o.batch + h * g.grad_o.head + i * g.grad_o.row;
      const T* o = g.o.data + b * g.o.batch + h * g.o.head + i * g.o.row;
      const bool empty = g.lse[at] == -infinity;
      // An output that is exactly 0 counts as 0 whatever its gradient: rows without keys may carry NaN there.
      const T delta =
          empty || constant ? T(0) : primitives<T>().row_sum(grad_o, g.grad_o.column, o, g.o.column, call.Dv);
      const T grad_lse = empty || !has_lse || g.grad_lse == nullptr ? T(0) : g.grad_lse[at];
      rows.lse[static_cast<size_t>(at)] = empty ? infinity : g.lse[at];
      rows.delta[static_cast<size_t>(at)] = delta - grad_lse;
      if (!exponential) rate_terms(call, statistics, static_cast<size_t>(at), g.lse[at], alone_is_constant, rows);
    }
  });
  return rows;
}

template <class T>
void sink_gradients(const Attention<T>& call, const RowTerms<T>& rows, T* gradient) {
  if (gradient == nullptr || call.sinks == nullptr) return;
  parallel_for(call.H * call.sink_count, [&](int64_t task) {
    const int64_t h = task / call.sink_count;
    double sum = 0;
    for (int64_t b = 0; b < call.B; ++b) {
      for (int64_t i = 0; i < call.M; ++i) {
        const auto at = static_cast<size_t>((b * call.H + h) * call.M + i);
        const T p = std::exp(call.sinks[task] - rows.lse[at]);
        if (p != 0) sum -= static_cast<double>(p) * static_cast<double>(rows.delta[at]);
      }
    }
    gradient[task] += static_cast<T>(sum);
  });
}

#define REGARD_INSTANTIATE(T)                                                                                \
  template RowTerms<T> row_terms(const Attention<T>&, const AttentionGradient<T>&, const RowStatistics<T>&); \
  template void sink_gradients(const Attention<T>&, const RowTerms<T>&, T*);
REGARD_INSTANTIATE(float)
REGARD_INSTANTIATE(double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
