// Drives the correlation: cuts planes into tiles, copies each tile's patch with its zeros around, runs the tile.
#include "regard/kernels/correlation.h"

#include <algorithm>
#include <vector>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/correlation_tile.h"

namespace regard::kernels {

namespace {

int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

/// One row of tiles of one plane: result rows [begin, end).
struct Band {
  int64_t plane, begin, end;
};

Band band_of(const Correlation& shape, int64_t task) {
  const int64_t bands = tiles_of(shape.out_rows(), kTileRows), begin = task % bands * kTileRows;
  return {task / bands, begin, std::min(begin + kTileRows, shape.out_rows())};
}

int64_t patch_stride(const Correlation& shape) { return kTileColumns + (shape.width + 15) / 16 * 16; }

/// The patch of result columns [column, column + columns): every entry is written, zeros outside the plane.
template <class T>
CorrelationTile<T> cut(const Correlation& shape, const Band& band, int64_t column, const T* in, std::vector<T>& patch) {
  const int64_t stride = patch_stride(shape), columns = std::min(kTileColumns, shape.out_columns() - column);
  const int64_t rows = band.end - band.begin + shape.height - 1;
  const int64_t first = column - shape.pads.left;  // of the plane's columns, may lie outside
  const int64_t begin = std::clamp<int64_t>(-first, 0, stride);
  const int64_t end = std::clamp<int64_t>(std::min(shape.columns - first, columns + shape.width - 1), begin, stride);
  patch.resize(static_cast<size_t>((kTileRows + shape.height - 1) * stride));
  for (int64_t r = 0; r < rows; ++r) {
    T* line = patch.data() + r * stride;
    const int64_t row = band.begin + r - shape.pads.top;
    if (row < 0 || row >= shape.rows) {
      std::fill_n(line, stride, T(0));
      continue;
    }
    const T* source = in + (band.plane * shape.rows + row) * shape.columns + first;
    std::fill_n(line, begin, T(0));
    std::copy(source + begin, source + end, line + begin);
    std::fill_n(line + end, stride - end, T(0));
  }
  return {patch.data(), stride, band.end - band.begin, columns, shape.height, shape.width};
}

template <class T>
T* row_of(const Correlation& shape, const Band& band, int64_t r, T* out) {
  return out + (band.plane * shape.out_rows() + band.begin + r) * shape.out_columns();
}

}  // namespace

template <class T>
void correlate(const Correlation& shape, const T* in, const T* kernel, T* out) {
  if (shape.out_rows() <= 0 || shape.out_columns() <= 0) return;
  const auto& primitives = correlation_primitives<T>();
  parallel_for(shape.planes * tiles_of(shape.out_rows(), kTileRows), [&](int64_t task) {
    const Band band = band_of(shape, task);
    const T* own = kernel + band.plane % shape.heads * shape.height * shape.width;
    std::vector<T> patch, result(static_cast<size_t>(kTileRows * kTileColumns));
    for (int64_t column = 0; column < shape.out_columns(); column += kTileColumns) {
      const auto tile = cut(shape, band, column, in, patch);
      primitives.correlate(tile, own, result.data());
      for (int64_t r = 0; r < tile.rows; ++r)
        std::copy_n(result.data() + r * kTileColumns, tile.columns, row_of(shape, band, r, out) + column);
    }
  });
}

template <class T>
void correlate_kernel_gradient(const Correlation& shape, const T* in, const T* out_gradient, T* kernel_gradient) {
  const int64_t entries = shape.height * shape.width,
                tasks = std::max<int64_t>(
                    0, shape.out_columns() > 0
                           ? shape.planes * tiles_of(std::max<int64_t>(0, shape.out_rows()), kTileRows)
                           : 0);
  std::vector<double> parts(static_cast<size_t>(tasks * entries), 0.0);
  const auto& primitives = correlation_primitives<T>();
  parallel_for(tasks, [&](int64_t task) {
    const Band band = band_of(shape, task);
    std::vector<T> patch, gradient(static_cast<size_t>(kTileRows * kTileColumns));
    for (int64_t column = 0; column < shape.out_columns(); column += kTileColumns) {
      const auto tile = cut(shape, band, column, in, patch);
      for (int64_t r = 0; r < tile.rows; ++r) {
        T* line = gradient.data() + r * kTileColumns;
        std::copy_n(row_of(shape, band, r, out_gradient) + column, tile.columns, line);
        std::fill_n(line + tile.columns, kTileColumns - tile.columns, T(0));
      }
      primitives.reduce(tile, gradient.data(), parts.data() + task * entries);
    }
  });
  std::vector<double> sums(static_cast<size_t>(shape.heads * entries), 0.0);
  for (int64_t task = 0; task < tasks; ++task) {
    double* own = sums.data() + band_of(shape, task).plane % shape.heads * entries;
    for (int64_t e = 0; e < entries; ++e) own[e] += parts[static_cast<size_t>(task * entries + e)];
  }
  std::copy(sums.begin(), sums.end(), kernel_gradient);
}

template void correlate(const Correlation&, const float*, const float*, float*);
template void correlate(const Correlation&, const double*, const double*, double*);
template void correlate_kernel_gradient(const Correlation&, const float*, const float*, float*);
template void correlate_kernel_gradient(const Correlation&, const double*, const double*, double*);

}  // namespace regard::kernels
