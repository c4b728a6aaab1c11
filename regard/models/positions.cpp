#include "regard/models/positions.h"

#include <torch/library.h>

#include <cmath>
#include <string>
#include <vector>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

/// images (B, D, h, w) -> (B, D, h', w').
at::Tensor bicubic(const at::Tensor& images, at::IntArrayRef size) {
  return at::_upsample_bicubic2d_aa(images, size, /*align_corners=*/false, std::nullopt, std::nullopt);
}

at::ScalarType compute_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_grid(const char* name, at::IntArrayRef grid) {
  if (grid.size() != 2 || grid[0] < 1 || grid[1] < 1)
    fail("resize_positions", std::string(name) + " to be two sizes of at least 1", describe(grid));
}

std::vector<int64_t> square_grid(int64_t tokens) {
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(tokens))));
  if (side * side != tokens || side < 1)
    fail("resize_positions", "old_grid when the old grid is not square",
         "no old_grid and " + std::to_string(tokens) + " grid entries");
  return {side, side};
}

}  // namespace

at::Tensor resize_positions(const at::Tensor& pos_embed, at::IntArrayRef old_grid, at::IntArrayRef new_grid,
                            int64_t prefix) {
  if (pos_embed.dim() != 3 || pos_embed.size(0) != 1 || !pos_embed.is_floating_point())
    fail("resize_positions", "pos_embed (1, prefix + h*w, D) of a floating dtype",
         describe(pos_embed.sizes()) + " " + c10::toString(pos_embed.scalar_type()));
  check_grid("new_grid", new_grid);
  const int64_t tokens = pos_embed.size(1);
  if (prefix < 0 || prefix > tokens)
    fail("resize_positions", "prefix in [0, " + std::to_string(tokens) + "]", std::to_string(prefix));
  const std::vector<int64_t> old = old_grid.empty() ? square_grid(tokens - prefix) : old_grid.vec();
  check_grid("old_grid", old);
  if (old[0] * old[1] != tokens - prefix)
    fail("resize_positions", "old_grid to hold the " + std::to_string(tokens - prefix) + " entries after the prefix",
         "old_grid " + describe(at::IntArrayRef(old)));
  if (new_grid[0] * new_grid[1] == tokens - prefix && new_grid[0] == new_grid[1]) return pos_embed;

  const at::Tensor front = pos_embed.narrow(1, 0, prefix);
  at::Tensor grid = pos_embed.narrow(1, prefix, tokens - prefix).to(compute_type(pos_embed));
  grid = grid.transpose(1, 2).unflatten(-1, old);
  grid = bicubic(grid, new_grid).flatten(2).transpose(1, 2).to(pos_embed.scalar_type());
  return prefix == 0 ? grid : at::cat({front, grid}, 1);
}

at::Tensor resize_patch_kernel(const at::Tensor& weight, at::IntArrayRef size) {
  if (weight.dim() != 4 || !weight.is_floating_point())
    fail("resize_patch_kernel", "weight (D, C, p, q) of a floating dtype", describe(weight.sizes()));
  if (size.size() != 2 || size[0] < 1 || size[1] < 1)
    fail("resize_patch_kernel", "two sizes of at least 1", describe(size));
  if (weight.size(2) == size[0] && weight.size(3) == size[1]) return weight;

  // Column i of R is the resized i-th unit image. The pseudoinverse is taken in float64: R is ill-conditioned when the
  // patch shrinks.
  const int64_t old_count = weight.size(2) * weight.size(3);
  const auto options = weight.options().dtype(at::kDouble);
  const at::Tensor units = at::eye(old_count, options).view({old_count, 1, weight.size(2), weight.size(3)});
  const at::Tensor transposed = bicubic(units, size).flatten(1);                        // R^T (p^2, p'^2)
  const at::Tensor inverse = at::linalg_pinv(transposed.transpose(0, 1).contiguous());  // pinv(R) (p^2, p'^2)
  const at::Tensor resized = at::matmul(weight.flatten(2).to(at::kDouble), inverse);
  return resized.unflatten(-1, size.vec()).to(weight.scalar_type());
}

at::Tensor adapt_input_channels(const at::Tensor& weight, int64_t channels) {
  if (weight.dim() != 4) fail("adapt_input_channels", "weight (D, C, p, q)", describe(weight.sizes()));
  if (channels < 1) fail("adapt_input_channels", "channels of at least 1", std::to_string(channels));
  if (weight.size(1) == channels) return weight;
  if (weight.size(1) != 3)
    fail("adapt_input_channels", "a weight of 3 input channels to make " + std::to_string(channels) + " of",
         std::to_string(weight.size(1)) + " channels");
  if (channels == 1) return weight.sum(1, /*keepdim=*/true);
  const int64_t copies = (channels + 2) / 3;
  return weight.repeat({1, copies, 1, 1}).narrow(1, 0, channels).mul(3.0 / static_cast<double>(channels)).contiguous();
}

}  // namespace regard

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("resize_positions(Tensor pos_embed, int[] old_grid, int[] new_grid, int prefix) -> Tensor",
        regard::guarded<&regard::resize_positions>);
  m.def("resize_patch_kernel(Tensor weight, int[] size) -> Tensor", regard::guarded<&regard::resize_patch_kernel>);
  m.def("adapt_input_channels(Tensor weight, int channels) -> Tensor", regard::guarded<&regard::adapt_input_channels>);
}
