// The backward pass, in two passes over the pairs that share one form. Each recomputes P from the log-sum-exp:
//
//     queries in lanes   S^T = K Q^T,  dP^T = V dO^T,  dQ^T += K^T dS^T          task = a tile of queries
//     keys in lanes      S = Q K^T,    dP = dO V^T,    dK^T += Q^T dS, dV^T += dO^T P    task = a tile of keys
//
// so that every task owns the gradients of its lanes: no atomics, no sum over threads, and O(M + N) memory. The lane
// side of each product is packed once a task, the step side is read in place. A task of the key pass covers all query
// heads of its key head, in order. Gradients of captured tensors come from the query pass (capture_gradient.h).
#include <algorithm>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/backward_task.h"

namespace regard::kernels {
namespace {

/// Whether query heads of different key heads add to one operand head of this side.
template <class T>
bool shares_heads(const Plan<T>& plan, Side side, int64_t units_heads) {
  for (const DotOperand<T>& dot : plan.dots) {
    const SideArray<T>& s = side == Side::queries ? dot.q : dot.k;
    if (s.gradient == nullptr) continue;
    if (s.only_head >= 0 || s.heads % units_heads != 0) return true;
  }
  return false;
}

/// The two passes of one call.
template <class T>
struct Backward {
  Plan<T>& plan;
  const RowTerms<T>& rows;
  SideArray<T> grad_o;

  bool wants(Side side) const {
    for (const DotOperand<T>& dot : plan.dots) {
      if ((side == Side::queries ? dot.q : dot.k).gradient != nullptr) return true;
    }
    if (side == Side::keys) return plan.v.gradient != nullptr;
    return std::any_of(plan.call.captures.begin(), plan.call.captures.end(),
                       [](const Capture& capture) { return capture.gradient != nullptr; });
  }

  void queries() {
    if (!wants(Side::queries)) return;
    const BoundPrograms bound = bind_programs(plan, Side::queries, true);
    const TileMap map(plan.pairs, plan.space, plan.call.captures, Side::queries);
    const GradientSchedule schedule(plan, bound.programs->open.derivatives, map.lane_tiles(),
                                    shares_heads(plan, Side::queries, plan.call.H));
    GradientBuffers buffers(schedule);
    for (int64_t wave = 0; wave < schedule.waves(); ++wave) {
      parallel_for(schedule.units(), [&](int64_t unit) {
        BackwardTask<T> task(plan, bound, map, Side::queries, grad_o, rows, fresh_arena());
        const CaptureSink sink{schedule.wanted().empty() ? nullptr : &schedule, &buffers, unit};
        schedule.for_tasks(wave, unit, [&](int64_t b, int64_t h, int64_t tile) { task.run(b, h, tile, sink); });
      });
      buffers.template flush<T>();
    }
  }

  void keys() {
    if (!wants(Side::keys)) return;
    const BoundPrograms bound = bind_programs(plan, Side::keys, true);
    const TileMap map(plan.pairs, plan.space, plan.call.captures, Side::keys);
    const int64_t owners = shares_heads(plan, Side::keys, plan.call.Hk) ? 1 : plan.call.Hk;
    const int64_t tiles = map.lane_tiles(), heads = plan.call.H / owners;
    parallel_for(plan.call.B * owners * tiles, [&](int64_t unit) {
      BackwardTask<T> task(plan, bound, map, Side::keys, grad_o, rows, fresh_arena());
      const int64_t b = unit / tiles / owners, first = unit / tiles % owners * heads;
      for (int64_t h = first; h < first + heads; ++h) task.run(b, h, unit % tiles, {});
    });
  }
};

template <class T>
SideArray<T> grad_o_side(const Attention<T>& call, const AttentionGradient<T>& gradient) {
  SideArray<T> side;
  side.array = gradient.grad_o;
  side.heads = call.H;
  side.length = call.M;
  side.columns = side.width = call.Dv;
  return side;
}

}  // namespace

template <class T>
void attention_backward(const Attention<T>& call, const AttentionGradient<T>& gradient) {
  Plan<T> plan(call);
  if (call.B == 0 || call.H == 0 || call.M == 0) return;
  const RowTerms<T> rows = row_terms(call, gradient);
  sink_gradients(call, rows, gradient.sinks);
  if (call.N == 0) return;
  for (DotOperand<T>& dot : plan.dots) {
    if (!dot.expr.node().name.empty()) continue;
    dot.q.gradient = gradient.q;
    dot.k.gradient = gradient.k;
  }
  plan.v.gradient = gradient.v;
  Backward<T> backward{plan, rows, grad_o_side(call, gradient)};
  backward.queries();
  backward.keys();
}

template void attention_backward(const Attention<float>&, const AttentionGradient<float>&);
template void attention_backward(const Attention<double>&, const AttentionGradient<double>&);

}  // namespace regard::kernels
