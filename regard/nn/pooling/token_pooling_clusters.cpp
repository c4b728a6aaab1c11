#include "regard/nn/pooling/token_pooling_clusters.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <limits>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

void check(const at::Tensor& x, const std::optional<at::Tensor>& padded, const c10::SymInt& count) {
  if (x.dim() != 3 || !x.is_floating_point()) fail("farthest_points", "x (B, N, D) of a floating type", describe(x));
  if (padded && (padded->scalar_type() != at::kBool || padded->sym_sizes() != x.sym_sizes().slice(0, 2)))
    fail("farthest_points", "padded (B, N) bool", describe(*padded));
  if (count < 1 || count > x.sym_size(1))
    fail("farthest_points", "count from 1 to the tokens of x " + describe(x), describe(count));
}

/// How many points there are decides how often the loop runs, so the op is opaque to tracing.
at::Tensor farthest_points_op(const at::Tensor& x, const std::optional<at::Tensor>& padded, c10::SymInt count) {
  check(x, padded, count);
  const int64_t points = count.guard_int(__FILE__, __LINE__);
  at::Tensor mean = x.mean(1, true);
  if (padded) {
    const at::Tensor present = padded->logical_not().to(x.scalar_type()).unsqueeze(2);
    mean = (x * present).sum(1, true) / present.sum(1, true).clamp_min(1);
  }
  const auto hidden = [&](const at::Tensor& d) { return padded ? d.masked_fill(*padded, -infinity) : d; };
  std::vector<at::Tensor> chosen = {hidden(squared_distances(x, mean).squeeze(2)).argmax(1, true)};
  at::Tensor nearest = at::full({x.size(0), x.size(1)}, infinity, x.options());
  at::Tensor taken = at::zeros({x.size(0), x.size(1)}, x.options().dtype(at::kBool));
  while (static_cast<int64_t>(chosen.size()) < points) {
    const at::Tensor place = chosen.back().unsqueeze(2).expand({-1, 1, x.size(2)});
    nearest = at::minimum(nearest, squared_distances(x, x.gather(1, place)).squeeze(2));
    taken = taken.scatter(1, chosen.back(), true);
    // Copies of a chosen point are at distance 0 and still before the point itself.
    chosen.push_back(hidden(nearest.masked_fill(taken, -1)).argmax(1, true));
  }
  return at::cat(chosen, 1);
}

at::Tensor farthest_points_meta(const at::Tensor& x, const std::optional<at::Tensor>&, c10::SymInt count) {
  return at::empty_symint({x.sym_size(0), count}, x.options().dtype(at::kLong));
}

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("farthest_points(Tensor x, Tensor? padded, SymInt count) -> Tensor"); }
TORCH_LIBRARY_IMPL(regard, CPU, m) { m.impl("farthest_points", guarded<&farthest_points_op>); }
TORCH_LIBRARY_IMPL(regard, CUDA, m) { m.impl("farthest_points", guarded<&farthest_points_op>); }
TORCH_LIBRARY_IMPL(regard, Meta, m) { m.impl("farthest_points", guarded<&farthest_points_meta>); }

}  // namespace

at::Tensor farthest_points(const at::Tensor& x, const at::Tensor& padded, const c10::SymInt& count) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regard::farthest_points", "")
                             .typed<decltype(farthest_points_op)>();
  return op.call(x, padded.defined() ? std::optional<at::Tensor>(padded) : std::nullopt, count);
}

at::Tensor squared_distances(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor gram = at::matmul(a, b.transpose(1, 2));
  return (a.square().sum(2).unsqueeze(2) + b.square().sum(2).unsqueeze(1) - 2 * gram).clamp_min(0);
}

}  // namespace regard
