#pragma once

#include <ATen/ATen.h>

namespace regard {

/// pos' = [prefix entries, R (h' w', h w) grid entries], R the antialiased bicubic resize (a = -0.5) of an h x w grid.
/// pos_embed (1, prefix + h*w, D) -> (1, prefix + h'*w', D), same dtype; computed in float32, or in float64 for
/// float64. An empty old_grid means a square one. Kept as it is when the count is equal and the new grid is square.
/// Throws when the number of entries is not prefix + h*w or a size is below 1. (Dosovitskiy et al. 2020, appendix D.)
at::Tensor resize_positions(const at::Tensor& pos_embed, at::IntArrayRef old_grid, at::IntArrayRef new_grid,
                            int64_t prefix);

/// w' = w pinv(R), R (p'^2, p^2) the same resize: <resize(x), w'> = <x, w> for every patch x when the patch grows.
/// weight (D, C, p, q) -> (D, C, p', q'). (Beyer et al. 2022, FlexiViT.)
at::Tensor resize_patch_kernel(const at::Tensor& weight, at::IntArrayRef size);

/// weight (D, 3, p, q) -> (D, channels, p, q): one channel sums the three; other counts repeat them and multiply by
/// 3 / channels. Unchanged when it already has that many.
at::Tensor adapt_input_channels(const at::Tensor& weight, int64_t channels);

}  // namespace regard
