#include "regard/kernels/cpu/row_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/tile.h"

namespace regard::kernels {
namespace {

constexpr int64_t kRows = 256;  // rows a task: some microseconds

}  // namespace

template <class T>
RowTerms<T> row_terms(const Attention<T>& call, const AttentionGradient<T>& g) {
  RowTerms<T> rows;
  rows.lse.resize(static_cast<size_t>(call.B * call.H * call.M));
  rows.delta.resize(rows.lse.size());
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
      const T delta = empty ? T(0) : primitives<T>().row_sum(grad_o, g.grad_o.column, o, g.o.column, call.Dv);
      const T grad_lse = empty || g.grad_lse == nullptr ? T(0) : g.grad_lse[at];
      rows.lse[static_cast<size_t>(at)] = empty ? infinity : g.lse[at];
      rows.delta[static_cast<size_t>(at)] = delta - grad_lse;
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

#define REGARD_INSTANTIATE(T)                                                       \
  template RowTerms<T> row_terms(const Attention<T>&, const AttentionGradient<T>&); \
  template void sink_gradients(const Attention<T>&, const RowTerms<T>&, T*);
REGARD_INSTANTIATE(float)
REGARD_INSTANTIATE(double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
