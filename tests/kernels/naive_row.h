#pragma once

#include <limits>
#include <vector>

#include "regard/algebra/spec.h"

namespace regard::kernels::testing {

/// One row of pairs, by the definitions of Normalizer.
struct Row {
  std::vector<double> s;  ///< scores, 0 where neither kept nor counted
  std::vector<bool> keep, counted;
  std::vector<double> w;  ///< factors, 0 where not kept

  // Set by normalize():
  std::vector<double> p;    ///< normalized weights
  std::vector<double> own;  ///< d p_j / d s_j where the sums of the row are held
  double lse = 0;
  double denominator = 1;                ///< sums, divisors, 1 / rate
  double mean = 0, variance = 0, n = 0;  ///< z_score
};

void normalize(const Normalizer& normalizer, const std::vector<double>& sinks, Row& row);

/// d objective / d s_k through the sums of the row, given d objective / d p_j (0 where not kept) and d objective /
/// d lse.
std::vector<double> slopes_through_sums(const Normalizer& normalizer, const Row& row, const std::vector<double>& g,
                                        double grad_lse);

}  // namespace regard::kernels::testing
