#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/kernels/problem.h"

namespace regard::kernels::testing {

struct Shape4 {
  int64_t B, H, Hk, M, N, Dh, Dv;
};

/// A mechanism: fills in the spec and its tensors for a problem whose sizes are set.
struct Mechanism {
  std::string name;
  std::function<void(Problem&, std::mt19937&)> build;
};

/// Specs of every kind: masks, each class of captured tensor, weights, counted, sinks, several dots, operands.
const std::vector<Mechanism>& mechanisms();
/// 1, primes, one off the tile, grouped heads, Dv != Dh.
const std::vector<Shape4>& shapes();

Problem problem_of(const Mechanism& mechanism, const Shape4& shape, uint32_t seed);
/// A spec put together at random from the parts of many mechanisms, on a random shape.
Problem random_problem(uint32_t seed);
std::string describe(const Problem& problem);

}  // namespace regard::kernels::testing
