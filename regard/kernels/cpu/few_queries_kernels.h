#pragma once

/// What the drivers of the few-query kernel and its instruction-set sources share: plain data and a table of functions.
///
/// Everything works on one *block* of at most kLanes keys of one key head and on its *rows*: the queries of all heads
/// of its group. Tiles are [row][key], kLanes apart. Packed rows are [row][width], zero up to a multiple of kLaneUnit.
///
/// Only <cstdint> and plain-data headers may be included here; see tile.h.
#include <cstdint>

#include "regard/kernels/cpu/tile.h"

namespace regard::kernels {

/// Most rows of a key head. Above eight the tile kernel is faster; sixteen leave room to measure that.
constexpr int64_t kFewRows = 16;

/// How keys and values are stored.
enum class Storage : uint8_t { same, bfloat16, float16 };
constexpr int kStorages = 3;

/// Rows of a block as they lie in memory: column stride 1.
struct FewArray {
  const void* data = nullptr;
  int64_t stride = 0;  ///< of rows, in elements
  Storage storage = Storage::same;
};

/// What is to be fetched while an array is read: the row `ahead` rows on, and past the array's last row those of the
/// array that is read next.
struct FewAhead {
  int64_t rows = 0;  ///< 0: fetch nothing
  FewArray next;
};

/// scores[r][j] = <rows[r], keys[j]>. Reads and writes no key past `count`.
template <class T>
struct FewScores {
  const T* rows = nullptr;
  int64_t row_stride = 0, row_count = 0;
  FewArray keys;
  FewAhead ahead;
  int64_t count = 0, width = 0;
  T* scores = nullptr;
};

/// sums[r] += sum_j weights[r][j] values[j].
template <class T>
struct FewSums {
  T* sums = nullptr;
  int64_t sum_stride = 0, row_count = 0;
  const T* weights = nullptr;
  FewArray values;
  FewAhead ahead;
  int64_t count = 0, width = 0;
};

/// gradient[j] = (add: +=) sum_r weights[r][j] rows[r].
template <class T>
struct FewOuter {
  T* gradient = nullptr;
  int64_t gradient_stride = 0;
  const T* weights = nullptr;
  const T* rows = nullptr;
  int64_t row_stride = 0, row_count = 0;
  int64_t count = 0, width = 0;
  bool add = false;
};

/// What the program says of one row of a block; a null pointer is the default.
template <class T>
struct FewRow {
  const T* score = nullptr;
  const T* weight = nullptr;         ///< 1
  const int32_t* keep = nullptr;     ///< every pair
  const int32_t* counted = nullptr;  ///< the kept pairs
};

/// Online softmax of one row: p[j] = exp2((s_j - maximum) unit) weight over kept pairs, sum = sum over counted ones.
template <class T>
struct FewAbsorb {
  FewRow<T> row;
  T unit = 1;  ///< log2(e), or 1 for scores of base 2
  int64_t count = 0;
  T* p = nullptr;        ///< zero from `count` to kLanes
  T* maximum = nullptr;  ///< updated
  T* sum = nullptr;      ///< updated
  T* output = nullptr;   ///< (width, a multiple of kLaneUnit) rescaled when the maximum moves
  int64_t width = 0;
};

/// Chain rule of one row, by the final log-sum-exp (of `unit`s):
///     p = exp2((s - lse) unit), pw = [keep] p w, ds = pw dp - [counted] p delta, dw = [keep] p dp
template <class T>
struct FewChain {
  FewRow<T> row;
  T unit = 1, lse = 0, delta = 0;
  T slope = 1;  ///< multiplied onto ds
  int64_t count = 0;
  const T* dp = nullptr;
  T *pw = nullptr, *ds = nullptr;  ///< zero from `count` to kLanes
  T* dw = nullptr;                 ///< or null
};

/// out = [live] (ds f + dw g), zero from `count` to kLanes; f, g null: zero.
template <class T>
struct FewCombine {
  FewRow<T> row;
  const T *ds = nullptr, *dw = nullptr, *f = nullptr, *g = nullptr;
  int64_t count = 0;
  T* out = nullptr;
};

/// What one instruction set provides.
template <class T>
struct FewPrimitives {
  void (*scores[kStorages])(const FewScores<T>&);
  void (*sums[kStorages])(const FewSums<T>&);
  bool (*finite[kStorages])(const FewArray&, int64_t count, int64_t width);
  void (*outer)(const FewOuter<T>&);
  void (*absorb)(const FewAbsorb<T>&);
  void (*chain)(const FewChain<T>&);
  void (*combine)(const FewCombine<T>&);
};

/// The primitives of the chosen instruction set.
template <class T>
const FewPrimitives<T>& few_primitives();

}  // namespace regard::kernels
