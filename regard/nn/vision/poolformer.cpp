#include "regard/nn/vision/poolformer.h"

#include "regard/base/error.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

/// The mean over each window of a map (B, C, grid...); `count_padding` divides by the whole window at the border too.
at::Tensor window_mean(const at::Tensor& map, int64_t size, bool count_padding) {
  const int64_t pad = size / 2;
  if (map.dim() == 3) return at::avg_pool1d(map, size, 1, pad, /*ceil_mode=*/false, count_padding);
  if (map.dim() == 4) return at::avg_pool2d(map, {size, size}, 1, pad, /*ceil_mode=*/false, count_padding);
  // A box is a rectangle in space times a line in time, at borders too. (avg_pool3d refuses maps below its window.)
  const at::Tensor space =
      at::avg_pool2d(map.flatten(1, 2), {size, size}, 1, pad, /*ceil_mode=*/false, count_padding).reshape_symint(map.sym_sizes());
  return at::avg_pool2d(space.flatten(3), {size, 1}, 1, {pad, 0}, /*ceil_mode=*/false, count_padding)
      .reshape_symint(map.sym_sizes());
}

/// The same over the window that ends at each position of a sequence (B, C, N), zeros before its start counted.
at::Tensor left_mean(const at::Tensor& map, int64_t size) {
  return at::avg_pool1d(at::constant_pad_nd(map, {size - 1, 0}), size, 1);
}

/// Mean of the tokens that exist in each window. Where some do not, their share of the window is divided out.
at::Tensor neighbors(const PoolFormer::Config& config, const at::Tensor& map, const at::Tensor& exists) {
  if (!config.causal && !exists.defined()) return window_mean(map, config.pool_size, /*count_padding=*/false);
  const at::Tensor present = exists.defined() ? exists.to(map.scalar_type()) : at::ones_like(map.slice(1, 0, 1));
  const auto mean = [&](const at::Tensor& t) {
    return config.causal ? left_mean(t, config.pool_size) : window_mean(t, config.pool_size, /*count_padding=*/true);
  };
  // A window without tokens (only around tokens that do not exist) keeps the divisor 1.
  const at::Tensor share = mean(present);
  return mean(map) / share.masked_fill(share == 0, 1);
}

}  // namespace

void PoolFormer::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("pool_size", pool_size, "window along every dimension of the grid, odd unless causal");
  f("causal", causal, "the window looks to the left only (grids of one dimension)");
}

void PoolFormer::Config::validate() const {
  require(pool_size > 0, "poolformer", "pool_size > 0", std::to_string(pool_size));
  require(causal || pool_size % 2 == 1, "poolformer", "an odd pool_size", std::to_string(pool_size));
}

Info PoolFormer::info() {
  Info info;
  info.id = "poolformer";
  info.family = "vision";
  info.role = Role::mixer;
  info.title = "PoolFormer: average pooling as the token mixer";
  info.equation = "y_i = mean of x over the window around i, cut at the border, - x_i";
  info.paper = "Yu et al., 2022, MetaFormer Is Actually What You Need for Vision";
  info.inputs = {{"lengths", "(B) int64: tokens of each row; the rest is padding"}};
  info.needs_grid = true;
  info.takes_prefix = false;
  info.examples = {R"({"width": 8})", R"({"width": 8, "pool_size": 5})"};
  info.golden.excuse = "the case is of the whole backbone, of which this is the mixer";
  return info;
}

void PoolFormer::declare(const Config&, Declaration&) {}

at::Tensor PoolFormer::forward(const Config& config, const Weights&, const at::Tensor& x, Context& context) {
  const int64_t rank = static_cast<int64_t>(context.grid.size());
  require(rank <= 3, "poolformer", "a grid of 1, 2 or 3 dimensions", std::to_string(rank));
  require(!config.causal || rank == 1, "poolformer", "a grid of one dimension with causal", std::to_string(rank));

  if (TORCH_GUARD_OR_FALSE(x.sym_size(1).sym_eq(0))) return x.clone();  // no tokens, no windows

  at::Tensor tokens = x, padded, exists;
  const at::Tensor lengths = context.input("lengths");
  if (lengths.defined()) {
    padded = padding(lengths, x.sym_size(1));
    tokens = x.masked_fill(padded.unsqueeze(2), 0);
    exists = at::unflatten_symint((~padded).unsqueeze(1), 2, context.grid);
  }
  // (B, N, D) read as (B, D, grid...) is the channels-last layout, which pooling keeps: no copy on either side.
  const at::Tensor map = at::unflatten_symint(tokens.transpose(1, 2), 2, context.grid);
  const at::Tensor mixed = neighbors(config, map, exists).flatten(2).transpose(1, 2) - tokens;
  return padded.defined() ? mixed.masked_fill(padded.unsqueeze(2), 0) : mixed;
}

REGARD_MECHANISM(PoolFormer)

}  // namespace regard
