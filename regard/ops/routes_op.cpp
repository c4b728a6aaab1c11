// torch.ops.regard.route_counts() -> str, JSON {"tile": n, "few_queries": n, "amx": n}: which kernel of the fused path
// ran how often; see kernels/cpu/routes.h.
#include <torch/library.h>

#include <nlohmann/json.hpp>

#include "regard/kernels/cpu/routes.h"

namespace regard {
namespace {

std::string route_counts() {
  const auto counts = kernels::route_counts();
  nlohmann::json out = nlohmann::json::object();
  for (size_t r = 0; r < counts.size(); ++r) out[kernels::kRouteNames[r]] = counts[r];
  return out.dump();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("route_counts() -> str", &route_counts);
  m.def("reset_route_counts() -> ()", &kernels::reset_route_counts);
}

}  // namespace regard
