#include "regard/kernels/cpu/routes.h"

#include <atomic>

namespace regard::kernels {
namespace {

std::array<std::atomic<int64_t>, kRoutes> counts;

}  // namespace

void count_route(Route route) { counts[static_cast<size_t>(route)].fetch_add(1, std::memory_order_relaxed); }

std::array<int64_t, kRoutes> route_counts() {
  std::array<int64_t, kRoutes> now{};
  for (size_t r = 0; r < now.size(); ++r) now[r] = counts[r].load(std::memory_order_relaxed);
  return now;
}

void reset_route_counts() {
  for (auto& count : counts) count = 0;
}

}  // namespace regard::kernels
