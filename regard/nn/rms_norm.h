#pragma once

#include <ATen/ATen.h>

namespace regard {

/// y = (x / sqrt(mean(x^2) + epsilon)) * weight over the last dimension, weight (D) or undefined. The quotient is
/// computed in float32 (float64 for float64) and cast to x's type before the product, as Llama's and Qwen's.
/// Zhang and Sennrich, 2019, Root Mean Square Layer Normalization.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

}  // namespace regard
