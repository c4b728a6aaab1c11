// The correlation's tiles for one instruction set. Included once by each correlation_*.cpp, which defines REGARD_ISA (the
// namespace) and REGARD_VECTOR_BYTES. Everything has internal linkage except the two tables.
#include "regard/kernels/cpu/correlation_tile.h"

namespace regard::kernels::REGARD_ISA {
namespace {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(REGARD_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int64_t kWidth = REGARD_VECTOR_BYTES / sizeof(T);

template <class T>
inline Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

/// Result rows x vectors that stay in registers: 16 accumulators of AVX-512's 32, 8 of 16 otherwise. A loaded vector of
/// the patch serves every row above it that the kernel reaches.
constexpr int kRows = 4;
constexpr int kVectors = REGARD_VECTOR_BYTES == 64 ? 4 : 2;

template <class T, int Rows, int Vectors>
void block(const CorrelationTile<T>& tile, const T* kernel, int64_t row, int64_t column, T* out) {
  Vector<T> sum[Rows][Vectors] = {};
  for (int64_t s = 0; s < tile.height + Rows - 1; ++s) {
    const T* line = tile.patch + (row + s) * tile.patch_stride + column;
    for (int64_t b = 0; b < tile.width; ++b) {
      Vector<T> x[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) x[v] = load(line + b + v * kWidth<T>);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const int64_t a = s - r;
        if (a < 0 || a >= tile.height) continue;
        const T weight = kernel[a * tile.width + b];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[r][v] += weight * x[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      *reinterpret_cast<Vector<T>*>(out + (row + r) * kTileColumns + column + v * kWidth<T>) = sum[r][v];
}

template <class T, int Rows>
void strip(const CorrelationTile<T>& tile, const T* kernel, int64_t row, T* out) {
  int64_t column = 0;
  for (; column + kVectors * kWidth<T> <= tile.columns; column += kVectors * kWidth<T>)
    block<T, Rows, kVectors>(tile, kernel, row, column, out);
  for (; column < tile.columns; column += kWidth<T>) block<T, Rows, 1>(tile, kernel, row, column, out);
}

template <class T>
void correlate_tile(const CorrelationTile<T>& tile, const T* kernel, T* out) {
  int64_t row = 0;
  for (; row + kRows <= tile.rows; row += kRows) strip<T, kRows>(tile, kernel, row, out);
  for (; row < tile.rows; ++row) strip<T, 1>(tile, kernel, row, out);
}

/// Sums of kernel entries (a .. a + Down) x (b .. b + Across), all in registers while the tile passes by.
template <class T, int Down, int Across>
void reduce_block(const CorrelationTile<T>& tile, const T* gradient, int64_t a, int64_t b, double* sums) {
  Vector<T> sum[Down][Across] = {};
  for (int64_t s = 0; s < tile.rows + Down - 1; ++s) {
    const T* line = tile.patch + (a + s) * tile.patch_stride + b;
    for (int64_t column = 0; column < tile.columns; column += kWidth<T>) {
      Vector<T> g[Down];
#pragma GCC unroll 3
      for (int d = 0; d < Down; ++d) {
        const int64_t row = s - d;
        g[d] = row >= 0 && row < tile.rows ? load(gradient + row * kTileColumns + column) : Vector<T>{};
      }
#pragma GCC unroll 8
      for (int c = 0; c < Across; ++c) {
        const Vector<T> x = load(line + column + c);
#pragma GCC unroll 3
        for (int d = 0; d < Down; ++d) sum[d][c] += g[d] * x;
      }
    }
  }
  for (int d = 0; d < Down; ++d)
    for (int c = 0; c < Across; ++c) {
      double total = 0;
      for (int64_t lane = 0; lane < kWidth<T>; ++lane) total += static_cast<double>(sum[d][c][lane]);
      sums[(a + d) * tile.width + b + c] += total;
    }
}

/// 24 accumulators of AVX-512's 32; 8 of 16 registers otherwise.
constexpr int kDown = REGARD_VECTOR_BYTES == 64 ? 3 : 2;
constexpr int kAcross = REGARD_VECTOR_BYTES == 64 ? 8 : 4;

template <class T, int Down>
void reduce_rows(const CorrelationTile<T>& tile, const T* gradient, int64_t a, double* sums) {
  int64_t b = 0;
  for (; b + kAcross <= tile.width; b += kAcross) reduce_block<T, Down, kAcross>(tile, gradient, a, b, sums);
  if constexpr (kAcross > 4)
    for (; b + 4 <= tile.width; b += 4) reduce_block<T, Down, 4>(tile, gradient, a, b, sums);
  for (; b + 2 <= tile.width; b += 2) reduce_block<T, Down, 2>(tile, gradient, a, b, sums);
  for (; b < tile.width; ++b) reduce_block<T, Down, 1>(tile, gradient, a, b, sums);
}

template <class T>
void reduce_tile(const CorrelationTile<T>& tile, const T* gradient, double* sums) {
  int64_t a = 0;
  for (; a + kDown <= tile.height; a += kDown) reduce_rows<T, kDown>(tile, gradient, a, sums);
  for (; a < tile.height; ++a) reduce_rows<T, 1>(tile, gradient, a, sums);
}

}  // namespace

extern const CorrelationPrimitives<float> correlation_floats;
extern const CorrelationPrimitives<double> correlation_doubles;
const CorrelationPrimitives<float> correlation_floats = {correlate_tile<float>, reduce_tile<float>};
const CorrelationPrimitives<double> correlation_doubles = {correlate_tile<double>, reduce_tile<double>};

}  // namespace regard::kernels::REGARD_ISA
