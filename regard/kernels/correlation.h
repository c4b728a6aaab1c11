#pragma once

#include <cstdint>

/// Cross-correlation of planes with small kernels, one kernel a head: the convolution over scores of attention maps.
/// Pointers and strides, no torch; float and double.
namespace regard::kernels {

/// Zeros around a plane.
struct Pads {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
};

/// `planes` images, plane p of head p % heads, each `rows` x `columns`, contiguous; kernels (heads, height, width),
/// contiguous. The result has rows + top + bottom - height + 1 rows and columns + left + right - width + 1 columns.
struct Correlation {
  int64_t planes = 0, heads = 1;
  int64_t rows = 0, columns = 0;
  int64_t height = 1, width = 1;
  Pads pads;
  int64_t out_rows() const { return rows + pads.top + pads.bottom - height + 1; }
  int64_t out_columns() const { return columns + pads.left + pads.right - width + 1; }
};

/// out[p, i, j] = sum_{a, b} kernel[p % heads, a, b] in[p, i + a - top, j + b - left], in = 0 outside.
template <class T>
void correlate(const Correlation& shape, const T* in, const T* kernel, T* out);

/// kernel_gradient[h, a, b] = sum_{p of head h, i, j} out_gradient[p, i, j] in[p, i + a - top, j + b - left].
/// Sums run in an order fixed by the shape, in double across tiles.
template <class T>
void correlate_kernel_gradient(const Correlation& shape, const T* in, const T* out_gradient, T* kernel_gradient);

}  // namespace regard::kernels
