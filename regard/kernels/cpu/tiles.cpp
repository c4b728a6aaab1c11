#include "regard/kernels/cpu/tiles.h"

#include <algorithm>

namespace regard::kernels {

template <class T>
void pack_rows(T* packed, const T* array, int64_t row, int64_t column, int64_t count, int64_t width, T scale) {
  Transpose<T> t;
  t.array = const_cast<T*>(array);
  t.packed = packed;
  t.row = row;
  t.column = column;
  t.count = count;
  t.width = width;
  t.scale = scale;
  primitives<T>().pack(t);
}

template <class T>
Tiles<T>::Tiles(const Plan<T>& plan, const BoundPrograms& bound, const TileMap& map, Arena& arena)
    : plan_(plan), bound_(bound), map_(map), arena_(arena) {
  for (size_t d = 0; d < plan.dots.size(); ++d) scores_.push_back(arena.take<T>(kSteps * kLanes));
  if (banded()) band_ = arena.take<int32_t>(kChunk * kLanes);
}

template <class T>
void Tiles<T>::begin(int64_t batch_index, int64_t head_index, int64_t query_tile) {
  const Cut& queries = map_.cuts().queries;
  batch = batch_index;
  head = head_index;
  first_query = queries.begin(query_tile);
  count = queries.end(query_tile) - first_query;
  lanes = padded_width(count);
  tile_ = query_tile;
  const int64_t shift =
      plan_.band_of_places ? plan_.sequences->shift(plan_.sequences->of_query(first_query)) : plan_.space.query_offset;
  for (int64_t l = 0; l < lanes && banded(); ++l) {
    const int64_t position = first_query + l + shift;
    const auto bounded = [](int64_t key) { return static_cast<int32_t>(std::clamp<int64_t>(key, -1, INT32_MAX)); };
    low_[l] = bounded(position + plan_.band->low);
    high_[l] = bounded(position + plan_.band->high);
  }
  if (open_) open_->stop();
  if (masked_) masked_->stop();
}

template <class T>
bool Tiles<T>::enter(int64_t key_block) {
  mapped_ = map_.at(batch, head, tile_, key_block);
  if (mapped_.kind == TileKind::skipped) return false;
  block = key_block;
  block_begin = map_.cuts().keys.begin(block);
  first_key = block_begin;
  int64_t end = map_.cuts().keys.end(block);
  if (masked()) {
    end = std::min(block_begin + mapped_.end_chunk * kChunk, end);
    if (banded()) end = std::min<int64_t>(end, high_[count - 1] + int64_t{1});
    first_key = block_begin + mapped_.first_chunk * kChunk;
  }
  if (end <= first_key) return false;
  steps = end - first_key;
  open_ready_ = masked_ready_ = false;
  return true;
}

template <class T>
void Tiles<T>::multiply(const SideArray<T>& keys, const T* packed, T* to, T* maximum) {
  Product<T> p;
  p.c = to;
  p.a = keys.at(batch, head, first_key);
  p.a_row = keys.array.row;
  p.a_depth = keys.array.column;
  p.b = packed;
  p.rows = steps;
  p.depth = keys.width;
  p.lanes = lanes;
  p.maximum = maximum;
  primitives<T>().product(p);
}

template <class T>
void Tiles<T>::accumulate(const SideArray<T>& keys, const T* tile, const int32_t* mask, T* to,
                          typename Product<T>::Mode mode, const T* factor) {
  Product<T> p;
  p.c = to;
  p.a = keys.at(batch, head, first_key);
  p.a_row = keys.array.column;
  p.a_depth = keys.array.row;
  p.b = tile;
  p.rows = keys.width;
  p.depth = steps;
  p.lanes = lanes;
  p.mode = mode;
  p.factor = factor;
  mask == nullptr ? primitives<T>().product(p) : primitives<T>().masked_product(p, {mask, 0, kLanes, 1});
}

template <class T>
View<int32_t> Tiles<T>::band(int64_t first, int64_t chunk_steps) {
  primitives<T>().band(band_, low_, high_, static_cast<int32_t>(first_key + first), chunk_steps, lanes);
  return {band_, kLanes};
}

template <class T>
void Tiles<T>::copy_mask(int32_t* to, View<int32_t> from, int64_t chunk_steps) const {
  for (int64_t s = 0; s < chunk_steps; ++s) {
    if (from) {
      std::copy_n(from.data + s * from.step, lanes, to + s * kLanes);
    } else {
      std::fill_n(to + s * kLanes, lanes, 1);
    }
  }
}

template <class T>
void Tiles<T>::run(int64_t first, int64_t steps_of_chunk) {
  const bool hidden = hides(first);
  auto& chosen = hidden ? masked_ : open_;
  bool& ready = hidden ? masked_ready_ : open_ready_;
  if (!chosen) {
    chosen.emplace(hidden ? bound_.programs->masked : bound_.programs->open, hidden ? bound_.masked : bound_.open,
                   plan_.space, arena_);
  }
  program_ = &*chosen;
  if (!program_->started()) program_->begin_lanes(batch, head, first_query, count);
  if (!ready) program_->begin_steps(first_key, steps);
  ready = true;
  program_->run(first, steps_of_chunk, scores_.data());
}

#define REGARD_INSTANTIATE(T)                                                   \
  template void pack_rows(T*, const T*, int64_t, int64_t, int64_t, int64_t, T); \
  template class Tiles<T>;
REGARD_INSTANTIATE(float)
REGARD_INSTANTIATE(double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
