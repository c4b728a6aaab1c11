#pragma once

#include <array>
#include <cstdint>

/// Which kernel of the fused path ran, counted, so that tests and benchmarks can assert it.
namespace regard::kernels {

enum class Route : uint8_t { tile, few_queries, amx };
constexpr int kRoutes = 3;
constexpr const char* kRouteNames[kRoutes] = {"tile", "few_queries", "amx"};

void count_route(Route route);                ///< once a call of attention_forward or attention_backward
std::array<int64_t, kRoutes> route_counts();  ///< since the start or the last reset, process-wide
void reset_route_counts();

}  // namespace regard::kernels
