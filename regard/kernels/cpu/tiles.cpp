#include "regard/kernels/cpu/tiles.h"

#include <algorithm>

namespace regard::kernels {

template <class T>
void pack_lanes(T* packed, const T* array, int64_t row, int64_t column, int64_t count, int64_t width) {
  const int64_t lanes = (count + kLaneUnit - 1) / kLaneUnit * kLaneUnit;
  for (int64_t d = 0; d < width; ++d) std::fill(packed + d * kLanes + count, packed + d * kLanes + lanes, T(0));
  for (int64_t l = 0; l < count; ++l) {
    const T* line = array + l * row;
    for (int64_t d = 0; d < width; ++d) packed[d * kLanes + l] = line[d * column];
  }
}

template <class T>
void add_lanes(T* array, int64_t row, const T* sums, int64_t count, int64_t width) {
  for (int64_t l = 0; l < count; ++l) {
    T* line = array + l * row;
    for (int64_t d = 0; d < width; ++d) line[d] += sums[d * kLanes + l];
  }
}

template <class T>
Tiles<T>::Tiles(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Side lanes_side, Arena& arena)
    : plan_(plan),
      map_(map),
      by_query_(lanes_side == Side::queries),
      open_(bound.programs->open, bound.open, plan.space, arena),
      masked_(bound.programs->masked, bound.masked, plan.space, arena) {
  for (const DotOperand<T>& dot : plan.dots) {
    packed_.push_back(arena.take<T>(dot.q.width * kLanes));
    scores_.push_back(arena.take<T>(kSteps * kLanes));
  }
}

template <class T>
void Tiles<T>::begin(int64_t batch_index, int64_t head_index, int64_t tile) {
  const int64_t length = by_query_ ? plan_.space.queries : plan_.space.keys;
  batch = batch_index;
  head = head_index;
  tile_ = tile;
  first_lane = tile * kLanes;
  count = std::min(kLanes, length - first_lane);
  lanes = (count + kLaneUnit - 1) / kLaneUnit * kLaneUnit;
  for (size_t d = 0; d < packed_.size(); ++d) {
    const SideArray<T>& side = lane_side(d);
    pack_lanes(packed_[d], side.at(batch, head, first_lane), side.array.row, side.array.column, count, side.width);
  }
  open_.stop();
  masked_.stop();
}

template <class T>
bool Tiles<T>::enter(int64_t block) {
  const MappedTile mapped = map_.at(batch, head, tile_, block);
  if (mapped.kind == TileKind::skipped) return false;
  const int64_t length = by_query_ ? plan_.space.keys : plan_.space.queries;
  first_step = block * kSteps + mapped.first_chunk * kChunk;
  steps = std::min(block * kSteps + mapped.end_chunk * kChunk, length) - first_step;
  program_ = mapped.kind == TileKind::open ? &open_ : &masked_;
  if (!program_->started()) program_->begin_lanes(batch, head, first_lane, count);
  program_->begin_steps(first_step, steps);
  for (size_t d = 0; d < scores_.size(); ++d) {
    const SideArray<T>& side = step_side(d);
    Product<T> p;
    p.c = scores_[d];
    p.a = side.at(batch, head, first_step);
    p.a_row = side.array.row;
    p.a_depth = side.array.column;
    p.b = packed_[d];
    p.rows = steps;
    p.depth = side.width;
    p.lanes = lanes;
    primitives<T>().product(p);
  }
  return true;
}

template <class T>
void accumulate(T* c, const T* array, int64_t row, int64_t column, int64_t width, const T* tile, const int32_t* mask,
                int64_t steps, int64_t lanes, const T* factor) {
  Product<T> p;
  p.c = c;
  p.a = array;
  p.a_row = column;
  p.a_depth = row;
  p.b = tile;
  p.rows = width;
  p.depth = steps;
  p.lanes = lanes;
  p.mode = factor != nullptr ? Product<T>::rescale : Product<T>::add;
  p.factor = factor;
  if (mask == nullptr || primitives<T>().finite(array, steps, width, row, column)) {
    primitives<T>().product(p);
  } else {
    primitives<T>().masked_product(p, mask);
  }
}

#define REGARD_INSTANTIATE(T)                                                                                   \
  template void pack_lanes(T*, const T*, int64_t, int64_t, int64_t, int64_t);                                   \
  template void add_lanes(T*, int64_t, const T*, int64_t, int64_t);                                             \
  template class Tiles<T>;                                                                                      \
  template void accumulate(T*, const T*, int64_t, int64_t, int64_t, const T*, const int32_t*, int64_t, int64_t, \
                           const T*);
REGARD_INSTANTIATE(float)
REGARD_INSTANTIATE(double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
