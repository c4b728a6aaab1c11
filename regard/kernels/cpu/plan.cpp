#include "regard/kernels/cpu/plan.h"

#include <algorithm>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/checks.h"

namespace regard::kernels {
namespace {

int64_t blocks_of(int64_t length, int64_t block) { return (length + block - 1) / block; }

template <class T>
SideArray<T> side(const Array4<const T>& array, int64_t query_heads, int64_t heads, int64_t length, int64_t columns) {
  SideArray<T> s;
  s.array = array;
  s.heads = heads;
  s.group = heads > 0 ? query_heads / heads : 1;
  s.length = length;
  s.columns = s.width = columns;
  return s;
}

/// The call's own q and k, or the named operand.
template <class T>
DotOperand<T> operand_of(const Expr& expr, const Attention<T>& call) {
  const Node& node = expr.node();
  DotOperand<T> dot{expr, side(call.q, call.H, call.H, call.M, call.Dh), side(call.k, call.H, call.Hk, call.N, call.Dh)};
  if (!node.name.empty()) {
    const Operand<T>& operand = find_operand(call.operands, node.name);
    dot.q = side(operand.q, call.H, operand.heads, call.M, operand.width);
    dot.k = side(operand.k, call.H, operand.heads, call.N, operand.width);
    dot.q.gradient = operand.q_gradient;
    dot.k.gradient = operand.k_gradient;
  }
  const int64_t columns = dot.q.columns;
  check_dot(node, columns, dot.q.heads, call.H);
  for (SideArray<T>* s : {&dot.q, &dot.k}) {
    s->begin = node.begin;
    s->width = (node.end < 0 ? columns : node.end) - node.begin;
    s->only_head = node.only_head;
  }
  return dot;
}

Truth both(Truth a, Truth b) { return a == b ? a : Truth::sometimes; }

}  // namespace

template <class T>
Plan<T>::Plan(const Attention<T>& attention) : call(attention), pairs(expressions_of(*attention.spec)) {
  check_call(call);
  space = {call.B, call.H, call.M, call.N, call.query_offset, call.scale};
  for (const Expr& dot : cached_programs(pairs, Side::queries, false, {})->dots) dots.push_back(operand_of(dot, call));
  v = side(call.v, call.H, call.Hk, call.N, call.Dv);
}

template <class T>
BoundPrograms bind_programs(const Plan<T>& plan, Side lanes, bool backward) {
  std::vector<std::string> wanted;
  if (backward && lanes == Side::queries) {  // gradients of captured tensors come from the pass over queries
    for (const Capture& capture : plan.call.captures) {
      if (capture.gradient != nullptr) wanted.push_back(capture.name);
    }
  }
  BoundPrograms bound{cached_programs(plan.pairs, lanes, backward, wanted), {}, {}};
  bound.open = bind_reads(bound.programs->open, plan.call.captures, plan.space);
  bound.masked = bind_reads(bound.programs->masked, plan.call.captures, plan.space);
  return bound;
}

TileMap::TileMap(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures,
                 Side lanes) {
  const bool by_query = lanes == Side::queries;
  const int64_t lane_count = by_query ? space.queries : space.keys, step_count = by_query ? space.keys : space.queries;
  lane_tiles_ = blocks_of(lane_count, kLanes);
  step_blocks_ = blocks_of(step_count, kSteps);
  if (!pairs.masked()) return;
  const Dependence keep = dependence(pairs.keep), counted = dependence(pairs.counted);
  by_batch_ = keep.batch || counted.batch;
  by_head_ = keep.head || counted.head;
  heads_ = by_head_ ? space.heads : 1;
  const int64_t rows = (by_batch_ ? space.batches : 1) * heads_ * lane_tiles_;
  kinds_.resize(static_cast<size_t>(rows * step_blocks_));
  const CaptureRange ranges = capture_range(captures);
  const bool apart = pairs.counted.pointer() != pairs.keep.pointer();
  parallel_for(rows, [&](int64_t row) {
    Analysis keep_analysis(pairs.keep), counted_analysis(pairs.counted);
    const int64_t lane = row % lane_tiles_ * kLanes, lane_end = std::min(lane + kLanes, lane_count);
    const int64_t head = row / lane_tiles_ % heads_, batch = row / lane_tiles_ / heads_;
    for (int64_t block = 0; block < step_blocks_; ++block) {
      const int64_t step = block * kSteps, step_end = std::min(step + kSteps, step_count);
      const Tile tile = by_query ? space.tile(batch, head, lane, lane_end, step, step_end)
                                 : space.tile(batch, head, step, step_end, lane, lane_end);
      Truth found = keep_analysis.truth(tile, ranges);
      if (apart) found = both(found, counted_analysis.truth(tile, ranges));
      kinds_[static_cast<size_t>(row * step_blocks_ + block)] = found == Truth::never    ? TileKind::skipped
                                                                : found == Truth::always ? TileKind::open
                                                                                         : TileKind::masked;
    }
  });
}

TileKind TileMap::at(int64_t batch, int64_t head, int64_t lane_tile, int64_t step_block) const {
  if (kinds_.empty()) return TileKind::open;
  const int64_t row = ((by_batch_ ? batch : 0) * heads_ + (by_head_ ? head : 0)) * lane_tiles_ + lane_tile;
  return kinds_[static_cast<size_t>(row * step_blocks_ + step_block)];
}

template struct Plan<float>;
template struct Plan<double>;
template BoundPrograms bind_programs(const Plan<float>&, Side, bool);
template BoundPrograms bind_programs(const Plan<double>&, Side, bool);

}  // namespace regard::kernels
