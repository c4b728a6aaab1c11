#pragma once

#include <algorithm>
#include <vector>

#include "regard/kernels/cpu/rounding.h"
#include "regard/kernels/cpu/tiles.h"

/// Where the sums of the backward pass lie while they grow, and where they end.
namespace regard::kernels {

/// The gradient of one side of one operand. Exclusive: each entry is written by one task and operand alone, once;
/// otherwise entries are added to, and were zeroed before.
template <class T>
struct GradientSide {
  bool exclusive = true;
  T* data = nullptr;      ///< the gradient itself, where part 0 goes
  T* parts = nullptr;     ///< the other parts, one after another
  int64_t part_size = 0;  ///< elements of a part
  T* part(int64_t p) const { return p == 0 ? data : parts + (p - 1) * part_size; }
};

template <class T>
struct GradientRows {
  struct Dot {
    GradientSide<T> q, k;
  };
  std::vector<Dot> dots;
  GradientSide<T> v;
};

/// The query side of one operand (or dO) over a segment of query tiles: packed (width x lanes) for products along the
/// width, as rows for products along the queries, and the sums of its own gradient, packed.
template <class T>
class QuerySegment {
 public:
  QuerySegment() = default;
  QuerySegment(const SideArray<T>& side, int64_t tiles, bool as_rows, Arena& arena) : side_(side) {
    const int64_t size = side.width * kLanes;
    packed_ = arena.take<T>(tiles * size);
    if (side.gradient != nullptr) sums_ = arena.take<T>(tiles * size);
    const bool in_place = side.array.column == 1 && side.width % kLaneUnit == 0;
    if (as_rows && !in_place) copy_ = arena.take<T>(tiles * kLanes * padded_width(side.width));
    summed_.resize(static_cast<size_t>(tiles));
  }

  /// Goes to the query tiles [first, end) of a head; those not `used` are left out.
  void begin(int64_t batch, int64_t head, const Cut& cut, int64_t first, int64_t end, const std::vector<char>& used,
             T scale) {
    first_query_ = cut.begin(first);
    for (int64_t t = first; t < end; ++t) {
      if (!used[static_cast<size_t>(t - first)]) continue;
      pack_rows(packed_ + (t - first) * side_.width * kLanes, side_.at(batch, head, cut.begin(t)), side_.array.row,
                side_.array.column, cut.end(t) - cut.begin(t), side_.width, scale);
    }
    rows_ = side_.at(batch, head, first_query_);
    row_stride_ = side_.array.row;
    if (copy_ != nullptr) copy_rows(cut.end(end - 1) - first_query_);
    std::fill(summed_.begin(), summed_.end(), false);
  }

  const T* packed(int64_t tile) const { return packed_ + tile * side_.width * kLanes; }
  const T* row(int64_t query) const { return rows_ + (query - first_query_) * row_stride_; }
  int64_t row_stride() const { return row_stride_; }

  /// The sums of a tile, and whether the next product stores or adds.
  T* sum(int64_t tile, typename Product<T>::Mode& mode) {
    mode = summed_[static_cast<size_t>(tile)] ? Product<T>::add : Product<T>::store;
    summed_[static_cast<size_t>(tile)] = true;
    return sums_ + tile * side_.width * kLanes;
  }
  /// The sums of a tile, or null for a tile without keys.
  T* finished_sum(int64_t tile) const {
    return summed_[static_cast<size_t>(tile)] ? sums_ + tile * side_.width * kLanes : nullptr;
  }

 private:
  void copy_rows(int64_t count) {
    const int64_t padded = padded_width(side_.width);
    for (int64_t i = 0; i < count; ++i) {
      const T* from = rows_ + i * side_.array.row;
      T* to = copy_ + i * padded;
      for (int64_t d = 0; d < side_.width; ++d) to[d] = from[d * side_.array.column];
      std::fill(to + side_.width, to + padded, T(0));
    }
    rows_ = copy_;
    row_stride_ = padded;
  }

  SideArray<T> side_;
  T *packed_ = nullptr, *sums_ = nullptr, *copy_ = nullptr;
  const T* rows_ = nullptr;
  int64_t row_stride_ = 0, first_query_ = 0;
  std::vector<char> summed_;  // by tile
};

/// The key side of one operand (or dV) over a range of key blocks: rows that products add to, the gradient itself where
/// its rows are whole vectors, else padded copies.
template <class T>
class KeyRows {
 public:
  KeyRows(const SideArray<T>& side, const GradientSide<T>& to, const Cut& keys, int64_t first, int64_t end,
          Arena& arena)
      : side_(side), to_(to), keys_(keys), first_(first), end_(end), padded_(padded_width(side.width)) {
    if (!wanted()) return;
    if (padded_ != side.width) copy_ = arena.take<T>(length() * padded_);
    written_.resize(static_cast<size_t>(end - first));
  }

  bool wanted() const { return side_.gradient != nullptr; }
  int64_t padded() const { return padded_; }
  int64_t row_stride() const { return copy_ != nullptr ? padded_ : side_.columns; }

  void begin(int64_t batch, int64_t head) {
    if (!wanted()) return;
    T* const gradient = to_.data + (side_.gradient_at(batch, head, keys_.begin(first_)) - side_.gradient);
    if (gradient != gradient_) {  // another key head
      finish();
      gradient_ = gradient;
      std::fill(written_.begin(), written_.end(), !to_.exclusive || copy_ != nullptr);
    }
    if (copy_ != nullptr) std::fill_n(copy_, length() * padded_, T(0));
  }

  /// Rows from a key of a block on, and whether the product over `count` of them stores or adds.
  T* rows(int64_t block, int64_t key, int64_t count, typename Product<T>::Mode& mode) {
    T* const to = (copy_ != nullptr ? copy_ : gradient_);
    char& written = written_[static_cast<size_t>(block - first_)];
    const int64_t length = keys_.end(block) - keys_.begin(block);
    if (!written && count != length) {
      std::fill_n(to + (keys_.begin(block) - keys_.begin(first_)) * row_stride(), length * row_stride(), T(0));
      written = true;
    }
    mode = written ? Product<T>::add : Product<T>::store;
    written = true;
    return to + (key - keys_.begin(first_)) * row_stride();
  }

  /// After each head: what was gathered in a copy goes to the gradient.
  void end() {
    if (copy_ == nullptr) return;
    for (int64_t j = 0; j < length(); ++j) {
      for (int64_t d = 0; d < side_.width; ++d) gradient_[j * side_.columns + d] += copy_[j * padded_ + d];
    }
  }

  /// After the last head of a key head: zeros for blocks that no query sees.
  void finish() {
    if (gradient_ == nullptr) return;
    for (int64_t block = first_; block < end_; ++block) {
      if (written_[static_cast<size_t>(block - first_)]) continue;
      const int64_t key = keys_.begin(block) - keys_.begin(first_), length = keys_.end(block) - keys_.begin(block);
      std::fill_n(gradient_ + key * side_.columns, length * side_.columns, T(0));
    }
  }

 private:
  int64_t length() const { return keys_.begin(end_) - keys_.begin(first_); }

  SideArray<T> side_;
  GradientSide<T> to_;
  Cut keys_;
  int64_t first_, end_, padded_;
  T *copy_ = nullptr, *gradient_ = nullptr;
  std::vector<char> written_;  // by block
};

}  // namespace regard::kernels
