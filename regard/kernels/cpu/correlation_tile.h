#pragma once

/// What the driver of the correlation and its instruction-set sources share. Only <cstdint>, as in tile.h.
#include <cstdint>

namespace regard::kernels {

/// A tile of the result: up to kTileRows x kTileColumns of it, from a patch of the padded plane that lies contiguously
/// in scratch memory. A patch of floats with a kernel of 6 x 11 takes 23 KiB, so it stays in the first cache level.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileColumns = 256;

/// Columns of a patch are padded to whole vectors of the widest set plus the kernel's width.
template <class T>
struct CorrelationTile {
  const T* patch;  ///< (rows + height - 1) x patch_stride, zeros outside the plane and behind the last column
  int64_t patch_stride;
  int64_t rows, columns;  ///< of the result
  int64_t height, width;  ///< of the kernel
};

template <class T>
struct CorrelationPrimitives {
  /// out[i, j] = sum kernel[a, b] patch[i + a, j + b]; `out` has kTileColumns columns, written up to a whole vector.
  void (*correlate)(const CorrelationTile<T>& tile, const T* kernel, T* out);
  /// sums[a, b] += sum_ij gradient[i, j] patch[i + a, j + b]; `gradient` has kTileColumns columns, zeros behind the
  /// last.
  void (*reduce)(const CorrelationTile<T>& tile, const T* gradient, double* sums);
};

/// The primitives of the chosen instruction set.
template <class T>
const CorrelationPrimitives<T>& correlation_primitives();

}  // namespace regard::kernels
