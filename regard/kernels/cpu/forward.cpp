// The forward pass. One task owns one tile of queries (the vector lanes) of one (batch, head) and walks over the
// blocks of keys:
//
//     S^T = K Q^T             K read in place, element by element; Q^T packed once a task, times scale log2(e)
//     program                 scores, masks and weights of the pairs, chunk by chunk, on tiles that need one
//     m, l, P^T               online softmax in base 2: maximum and sum are vectors over the lanes
//     O^T = f O^T + V^T P^T   V read in place, f = exp2(old m - new m) applied as the old sums are loaded
//
// and turns O^T / l into rows at the end. The product S^T finds the maxima while its tile is still in registers; no
// sum or maximum ever runs across a vector. Tasks share nothing that is written, and blocks are cut by position alone:
// bits depend on neither threads nor batch-mates.
//
// Few tiles over many keys (one head, a short query) would leave cores idle: then the keys are cut into parts as well,
// each part leaves its state, and states are merged in order. The cut looks at the sequence and its heads, not at the
// batch or the threads.
#include <memory>
#include <numbers>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/folded.h"
#include "regard/kernels/cpu/forward_task.h"
#include "regard/kernels/cpu/routes.h"
#include "regard/kernels/cpu/tile_attention.h"

namespace regard::kernels {
namespace {

constexpr int64_t kEnoughTasks = 16;      // of one batch entry: cores of a host on which one head still scales
constexpr int64_t kLeastPartKeys = 1024;  // a part costs a merge of M rows: some percent of its work

constexpr double kAlone = 1 << 18;  // multiplications done before other threads would have woken: some microseconds

Cut key_parts(const Cuts& cuts, int64_t heads, const Normalizer& normalizer) {
  // Parts of a z-score would each leave a second array, the sums of the values: twice the merge for a rare case.
  if (normalizer.kind == Normalizer::Kind::z_score) return {cuts.keys.parts, 1, 1};
  const int64_t tasks = std::max<int64_t>(1, heads * cuts.queries.parts);
  const int64_t wanted = ceil_div(kEnoughTasks, tasks);
  const int64_t most = std::max<int64_t>(1, cuts.keys.length / kLeastPartKeys);
  return {cuts.keys.parts, 1, std::min(wanted, most)};
}

/// o = sum_p w_p o_p / sum_p w_p l_p with w_p = exp2(m_p - m), parts in order; without maxima all m are 0.
template <class T>
void merge_row(const Attention<T>& call, const Partial<T>& partial, int64_t parts, int64_t row) {
  const int64_t rows = call.B * call.H * call.M;
  const int64_t b = row / call.M / call.H, h = row / call.M % call.H, i = row % call.M;
  T* o = call.o.data + b * call.o.batch + h * call.o.head + i * call.o.row;
  T maximum = -std::numeric_limits<T>::infinity(), sum = 0;
  for (int64_t p = 0; p < parts; ++p) maximum = std::max(maximum, partial.maximum[p * rows + row]);
  for (int64_t d = 0; d < call.Dv; ++d) o[d * call.o.column] = 0;
  for (int64_t p = 0; p < parts; ++p) {
    const T own = partial.maximum[p * rows + row];
    if (own == -std::numeric_limits<T>::infinity()) continue;
    const T weight = std::exp2(own - maximum);
    sum += weight * partial.sum[p * rows + row];
    const T* part = partial.o + (p * rows + row) * call.Dv;
    for (int64_t d = 0; d < call.Dv; ++d) o[d * call.o.column] += weight * part[d];
  }
  FinishedRow<T> finished{0, -std::numeric_limits<T>::infinity()};
  if (!is_exponential(call.spec->normalizer)) {
    finished = finish_row(call.spec->normalizer, call.N, sum, T(0));
  } else if (sum != 0) {
    finished = {1 / sum, maximum * std::numbers::ln2_v<T> + std::log(sum)};
  }
  for (int64_t d = 0; d < call.Dv; ++d) o[d * call.o.column] *= finished.factor;
  call.lse[row] = finished.lse;
}

template <class T>
void forward_in_parts(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, const Cut& parts) {
  const Attention<T>& call = plan.call;
  const int64_t tiles = map.cuts().queries.parts, rows = call.B * call.H * call.M;
  const std::unique_ptr<T[]> memory(new T[static_cast<size_t>(parts.parts * rows * (call.Dv + 2))]);
  const Partial<T> partial{memory.get(), memory.get() + parts.parts * rows * call.Dv,
                           memory.get() + parts.parts * rows * (call.Dv + 1)};
  parallel_for(call.B * call.H * tiles * parts.parts, [&](int64_t task) {
    const int64_t part = task % parts.parts, tile = task / parts.parts;
    ForwardTask<T> forward(plan, bound, map, fresh_arena());
    forward.run(tile / tiles / call.H, tile / tiles % call.H, tile % tiles, parts.begin(part), parts.end(part));
    forward.leave(partial, part);
  });
  parallel_for(rows, [&](int64_t row) { merge_row(call, partial, parts.parts, row); });
}

}  // namespace

template <class T>
void tile_forward(const Attention<T>& call) {
  const Plan<T> plan(call);
  if (call.B == 0 || call.H == 0 || call.M == 0) return;
  if (const auto one = folded(plan)) return tile_forward(*one);
  count_route(Route::tile);
  const BoundPrograms bound = bind_programs(plan, Side::queries, Derivatives::none);
  const TileLayout layout = plan.layout();
  const TileMap map(plan.pairs, plan.space, call.captures, forward_cuts(call.M, call.N, plan.pairs.masked(), layout),
                    layout);
  const Cut parts = key_parts(map.cuts(), call.H, call.spec->normalizer);
  if (parts.parts > 1) return forward_in_parts(plan, bound, map, parts);
  const int64_t tiles = map.cuts().queries.parts;
  // Head by head, so that its keys stay in the cache; its last tiles first, under a causal mask the long ones.
  const auto run = [&](int64_t task) {
    ForwardTask<T> forward(plan, bound, map, fresh_arena());
    const int64_t tile = tiles - 1 - task % tiles;
    forward.run(task / tiles / call.H, task / tiles % call.H, tile, 0, map.cuts().keys.parts);
    forward.finish();
  };
  const int64_t tasks = call.B * call.H * tiles;
  const double multiplications =
      static_cast<double>(call.B * call.H * call.M) * static_cast<double>(call.N * (call.Dh + call.Dv));
  if (multiplications > kAlone) return parallel_for(tasks, run);
  for (int64_t task = 0; task < tasks; ++task) run(task);
}

template void tile_forward(const Attention<float>&);
template void tile_forward(const Attention<double>&);

}  // namespace regard::kernels
