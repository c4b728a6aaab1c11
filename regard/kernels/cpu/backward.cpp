// The backward pass: five products for each tile of queries (lanes) and block of keys, all of one owner.
//
//     S^T  = K Q^T        keys x queries, K in place, Q^T packed (times scale log2(e) where the score is plain)
//     dP^T = V dO^T       keys x queries, V in place, dO^T packed
//     P = exp2(S - lse),  dS = P (dP - delta): one pass over the tile; expressions and masks as in the forward
//     dV  += P^T dO       keys x width, P^T read by element, rows of dO in the lanes, added into the gradient
//     dK  += dS^T Q       the same with rows of Q
//     dQ^T += K^T dS^T    width x queries, packed sums, turned into rows at the end
//
// A task owns the keys of a range of blocks for all query heads of its key head: dK and dV need no second sum, a block
// of them stays in the second cache level while the queries pass. Where heads are few the keys are cut into parts, by
// the sequence and its heads alone; each part leaves its own dQ, added in order: no atomics, and bits depend on neither
// threads nor batch-mates. (Two passes that each recompute S and dP, one for dQ and one for dK and dV, would need
// seven products.) Gradients of captured tensors are a pass of their own over the query tiles (capture_gradient.h).
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <set>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/backward_task.h"
#include "regard/kernels/cpu/folded.h"
#include "regard/kernels/cpu/routes.h"
#include "regard/kernels/cpu/tile_attention.h"
#include "regard/kernels/cpu/zero.h"

namespace regard::kernels {
namespace {

constexpr int64_t kEnoughTasks = 16;     // of one batch entry: cores of a host on which one head still scales
constexpr int64_t kLeastPartKeys = 256;  // a part packs the queries again and adds its dQ: some percent of its work

/// The whole backward of one call.
template <class T>
class Backward {
 public:
  Backward(Plan<T>& plan, const RowTerms<T>& rows, const SideArray<T>& grad_o)
      : plan_(plan),
        rows_(rows),
        grad_o_(grad_o),
        map_(plan.pairs, plan.space, plan.call.captures,
             backward_cuts(plan.call.M, plan.call.N, plan.pairs.masked(), plan.layout()), plan.layout()) {}

  void operands() {
    if (!wants_operands()) return;
    const int64_t owners = shares_heads() ? 1 : plan_.call.Hk, heads = plan_.call.H / owners;
    const int64_t blocks = map_.cuts().keys.parts, most = std::max<int64_t>(1, plan_.call.N / kLeastPartKeys);
    const std::vector<int64_t> bounds = parts_of(std::min({blocks, most, ceil_div(kEnoughTasks, owners)}));
    const int64_t parts = static_cast<int64_t>(bounds.size()) - 1;
    place(parts);
    const BoundPrograms bound = bind_programs(plan_, Side::queries, Derivatives::dots);
    parallel_for(plan_.call.B * owners * parts, [&](int64_t task) {
      const int64_t part = task % parts, b = task / parts / owners, h = task / parts % owners * heads;
      BackwardTask<T> backward(plan_, bound, map_, grad_o_, rows_, fresh_arena());
      backward.run(b, h, h + heads, bounds[part], bounds[part + 1], gradients_, part);
    });
    add_parts(parts);
  }

  void captures() {
    const auto& all = plan_.call.captures;
    if (std::none_of(all.begin(), all.end(), [](const Capture& c) { return c.gradient != nullptr; })) return;
    const BoundPrograms bound = bind_programs(plan_, Side::queries, Derivatives::captures);
    const GradientSchedule schedule(plan_, bound.programs->open.derivatives, map_.cuts().queries.parts);
    GradientBuffers buffers(schedule);
    for (int64_t wave = 0; wave < schedule.waves(); ++wave) {
      parallel_for(schedule.units(), [&](int64_t unit) {
        BackwardTask<T> task(plan_, bound, map_, grad_o_, rows_, fresh_arena());
        const CaptureSink sink{&schedule, &buffers, unit};
        schedule.for_tasks(wave, unit,
                           [&](int64_t b, int64_t h, int64_t tile) { task.run_captures(b, h, tile, sink); });
      });
      buffers.template flush<T>();
    }
  }

 private:
  struct PartBuffer {
    std::unique_ptr<T[]> memory;
    int64_t size = 0;
  };

  /// Bounds of parts of the key blocks that hold about as many tiles each. A mask that differs by batch entry, or a
  /// list of blocks, is not looked at: cuts must not depend on batch-mates.
  std::vector<int64_t> parts_of(int64_t parts) const {
    const int64_t blocks = map_.cuts().keys.parts;
    const bool even = map_.by_batch() || plan_.blocks;
    std::vector<int64_t> tiles(static_cast<size_t>(blocks), even ? 1 : 0), bounds{0};
    for (int64_t t = 0; t < map_.cuts().queries.parts && !even && parts > 1; ++t) {
      for (int64_t j = 0; j < blocks; ++j)
        tiles[static_cast<size_t>(j)] += map_.at(0, 0, t, j).kind != TileKind::skipped;
    }
    const int64_t all = std::accumulate(tiles.begin(), tiles.end(), int64_t{0});
    int64_t before = 0;
    for (int64_t j = 0; j + 1 < blocks && static_cast<int64_t>(bounds.size()) < parts; ++j) {
      before += tiles[static_cast<size_t>(j)];
      if (before * parts >= all * static_cast<int64_t>(bounds.size())) bounds.push_back(j + 1);
    }
    bounds.push_back(blocks);
    return bounds;
  }

  bool wants_operands() const {
    if (plan_.v.gradient != nullptr) return true;
    return std::any_of(plan_.dots.begin(), plan_.dots.end(),
                       [](const DotOperand<T>& dot) { return dot.q.gradient != nullptr || dot.k.gradient != nullptr; });
  }

  /// Whether query heads of different key heads add to one head of an operand.
  bool shares_heads() const {
    for (const DotOperand<T>& dot : plan_.dots) {
      for (const SideArray<T>* side : {&dot.q, &dot.k}) {
        if (side->gradient != nullptr && (side->only_head >= 0 || side->heads % plan_.call.Hk != 0)) return true;
      }
    }
    return false;
  }

  int64_t elements(const SideArray<T>& side) const { return plan_.call.B * side.heads * side.length * side.columns; }

  /// Exclusive: no other dot, and no other head beside those of one task, adds to this gradient.
  GradientSide<T> side_of(const SideArray<T>& side, int64_t heads) const {
    GradientSide<T> to;
    to.data = side.gradient;
    int64_t users = 0;
    for (const DotOperand<T>& dot : plan_.dots)
      users += dot.q.gradient == side.gradient || dot.k.gradient == side.gradient;
    to.exclusive = users <= 1 && side.width == side.columns && side.heads == heads && side.only_head < 0;
    return to;
  }

  void place(int64_t parts) {
    gradients_.dots.clear();
    for (const DotOperand<T>& dot : plan_.dots) {
      auto& to = gradients_.dots.emplace_back();
      if (dot.q.gradient != nullptr) to.q = query_side(dot.q, parts);
      if (dot.k.gradient != nullptr) to.k = key_side(dot.k);
    }
    if (plan_.v.gradient != nullptr) gradients_.v = key_side(plan_.v);
  }

  GradientSide<T> query_side(const SideArray<T>& q, int64_t parts) {
    GradientSide<T> to = side_of(q, plan_.call.H);
    PartBuffer& buffer = buffers_[q.gradient];
    const bool fresh = buffer.size == 0;
    buffer.size = to.part_size = elements(q);
    if (fresh && parts > 1) buffer.memory.reset(new T[static_cast<size_t>((parts - 1) * buffer.size)]);
    to.parts = buffer.memory.get();
    if (fresh && !to.exclusive) {
      zero(to.data, buffer.size);
      zero(to.parts, (parts - 1) * buffer.size);
    }
    return to;
  }

  GradientSide<T> key_side(const SideArray<T>& k) {
    GradientSide<T> to = side_of(k, plan_.call.Hk);
    const bool copied = padded_width(k.width) != k.width;
    if ((!to.exclusive || copied) && zeroed_.insert(k.gradient).second) zero(k.gradient, elements(k));
    return to;
  }

  /// dQ += its other parts, in order.
  void add_parts(int64_t parts) const {
    constexpr int64_t kPart = 1 << 14;  // elements a task: some microseconds
    for (const auto& [gradient, buffer] : buffers_) {
      if (!buffer.memory) continue;
      const int64_t size = buffer.size;
      const T* from = buffer.memory.get();
      T* const to = gradient;
      parallel_for(ceil_div(size, kPart), [=](int64_t task) {
        const int64_t begin = task * kPart, end = std::min(size, begin + kPart);
        for (int64_t p = 0; p + 1 < parts; ++p) {
          for (int64_t e = begin; e < end; ++e) to[e] += from[p * size + e];
        }
      });
    }
  }

  Plan<T>& plan_;
  const RowTerms<T>& rows_;
  const SideArray<T> grad_o_;
  const TileMap map_;
  GradientRows<T> gradients_;
  std::map<T*, PartBuffer> buffers_;  // of each gradient of queries
  std::set<T*> zeroed_;
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

/// Of a call without pairs.
template <class T>
void zero_gradients(const Attention<T>& call, const AttentionGradient<T>& g) {
  zero(g.q, call.B * call.H * call.M * call.Dh);
  zero(g.k, call.B * call.Hk * call.N * call.Dh);
  zero(g.v, call.B * call.Hk * call.N * call.Dv);
}

}  // namespace

template <class T>
void tile_backward(const Attention<T>& call, const AttentionGradient<T>& gradient) {
  Plan<T> plan(call);
  if (call.B == 0 || call.H == 0 || call.M == 0 || call.N == 0 || plan.dots.empty()) zero_gradients(call, gradient);
  if (call.B == 0 || call.H == 0 || call.M == 0) return;
  if (const auto one = folded(plan)) {
    if (const auto one_gradient = folded(call, gradient)) return tile_backward(*one, *one_gradient);
  }
  count_route(Route::tile);
  const RowTerms<T> rows = row_terms(call, gradient, row_statistics(plan, gradient));
  sink_gradients(call, rows, gradient.sinks);
  if (call.N == 0) return;
  bool read = false;  // whether some dot is of q and k themselves
  for (DotOperand<T>& dot : plan.dots) {
    if (!dot.expr.node().name.empty()) continue;
    dot.q.gradient = gradient.q;
    dot.k.gradient = gradient.k;
    read = true;
  }
  if (!read)
    zero_gradients(call, {gradient.grad_o, gradient.grad_lse, gradient.o, gradient.lse, gradient.q, gradient.k});
  plan.v.gradient = gradient.v;
  Backward<T> backward(plan, rows, grad_o_side(call, gradient));
  backward.operands();
  backward.captures();
}

template void tile_backward(const Attention<float>&, const AttentionGradient<float>&);
template void tile_backward(const Attention<double>&, const AttentionGradient<double>&);

}  // namespace regard::kernels
