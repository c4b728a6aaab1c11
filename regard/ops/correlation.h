#pragma once

#include <ATen/ATen.h>

#include "regard/kernels/correlation.h"

namespace regard::ops {

/// out[n, h, i, j] = sum_{a, b} kernel[h, a, b] x[n, h, i + a - top, j + b - left], x = 0 outside.
/// x (B, H, R, N), kernel (H, height, width); out (B, H, R + top + bottom - height + 1, N + left + right - width + 1).
/// Differentiable to any order. Numbers on a CPU in float32 or float64 run on Regard's own kernel (a depthwise
/// at::conv2d takes ten times as long there); everything else, and what transforms and tracing see, is at::conv2d.
at::Tensor correlate(const at::Tensor& x, const at::Tensor& kernel, const kernels::Pads& pads);

}  // namespace regard::ops
