#pragma once

#include <ATen/ATen.h>

#include <string>

namespace regard {

/// Rotary position embedding (Su et al., 2021): pair t of channels of a token at position p turns by p theta^(-2t/W),
///
///     (a, b) -> (a cos - b sin, b cos + a sin),
///
/// over the first `width` W channels; the rest stay. Pairs are (t, t + W/2), or (2t, 2t + 1) when `interleaved`.
/// x (B, H, L, Dh); positions (L) or (B, L), any real numbers. Angles in float32, float64 for float64 x.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, double theta, int64_t width, bool interleaved);

/// The same with given tables cos and sin, (L, C) or (B, L, C): C = W/2 columns, one a pair, or C = W, one a channel.
at::Tensor rotate_by(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, int64_t width,
                     bool interleaved);

/// A table of the input `name`, in the rows of the tokens at `positions` (L) or (B, L): (T, C), row p of position p, or
/// (B, L, C), of the tokens already. C is `width` or its half.
at::Tensor table_rows(const char* id, const std::string& name, const at::Tensor& table, const at::Tensor& positions,
                      int64_t width);

}  // namespace regard
