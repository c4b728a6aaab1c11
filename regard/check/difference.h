#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

namespace regard::checking {

/// The worst entry between two tensors of one shape.
struct Difference {
  double error = 0;            ///< max |expected - found| / scale; infinite where one alone is not finite
  bool exact = true;           ///< equal bit by bit, signs of zero aside
  std::vector<int64_t> index;  ///< where the error is
  double expected = 0;         ///< the entry there
  double found = 0;
};

/// error = max_i |expected_i - found_i| / scale. A scale of 0 means the largest magnitude of `expected` (1 if that is
/// 0). NaN differs from everything, NaN included. Throws regard::Error when the shapes differ.
Difference difference(const at::Tensor& expected, const at::Tensor& found, double scale = 0);

/// The largest finite magnitude, 0 for an empty tensor.
double magnitude(const at::Tensor& tensor);

/// True when every entry is finite (always for integers).
bool finite(const at::Tensor& tensor);

/// "(2, 3, 4)"
std::string shape_text(at::IntArrayRef shape);

}  // namespace regard::checking
