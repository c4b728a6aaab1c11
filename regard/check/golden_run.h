#pragma once

#include <map>
#include <string>
#include <vector>

#include "regard/check/golden_case.h"

namespace regard::checking {

/// One tensor of the file against ours.
struct Comparison {
  std::string name;  ///< "out.y", "grad.param.wq.weight"
  double error = 0;  ///< over the tensor's largest magnitude
  double tolerance = 0;
  bool passed = false;
  std::string reason;  ///< when the shapes differ, or a zero gradient is not zero
  std::vector<int64_t> index;
  double expected = 0, found = 0;
};

/// One pass over a case: a path and a type.
struct GoldenRun {
  std::string path;
  at::ScalarType type = at::kDouble;
  bool ran = false;  ///< false: the path was refused, and `reason` says why
  bool passed = false;
  std::string reason;
  std::vector<Comparison> tensors;
};

/// Forward and backward of the case; compares every output that has a place and every gradient.
GoldenRun run_golden_case(const GoldenFile& file, const GoldenCase& mapped, const std::string& path,
                          at::ScalarType type, const Bounds& bounds);

/// The bounds of a float32 run: for each tensor max(stated, 4 x the error of the composite path in float32 on the same
/// tensor of the same case). A whole model in float32 rounds by more than `least` on any path; what a path must not do
/// is to round worse than the formula written down in the same type. A gradient that is truly zero keeps
/// the least one.
Bounds float32_bounds(const GoldenFile& file, const GoldenCase& mapped, const Bounds& stated);

}  // namespace regard::checking
