#pragma once

#include <map>
#include <random>
#include <string>
#include <vector>

#include "regard/kernels/attention.h"

/// One attention problem in float64, and a plain triple loop that solves it: what the kernels are held against.
namespace regard::kernels::testing {

struct Tensor {
  std::vector<int64_t> sizes;
  std::vector<double> data;
  double& at(const std::vector<int64_t>& index);
  double at(const std::vector<int64_t>& index) const;
};
Tensor filled(std::vector<int64_t> sizes, double value = 0);
Tensor random_normal(std::vector<int64_t> sizes, std::mt19937& random);
Tensor random_integers(std::vector<int64_t> sizes, int low, int high, std::mt19937& random);

struct Captured {
  Type type = Type::real;
  Tensor values;
};

struct NamedOperand {
  Tensor q, k;  ///< (B, Hx, M, Dx), (B, Hx, N, Dx)
};

struct Problem {
  int64_t B = 1, H = 1, Hk = 1, M = 1, N = 1, Dh = 1, Dv = 1, query_offset = 0;
  double scale = 1;
  AttentionSpec spec;     ///< not resolved
  Tensor q, k, v, sinks;  ///< sinks (H, S), or no sizes
  std::map<std::string, Captured> captures;
  std::map<std::string, NamedOperand> operands;
  Tensor grad_o, grad_lse;  ///< (B, H, M, Dv), (B, H, M)
};

struct Solution {
  Tensor o, lse;
  Tensor q, k, v, sinks;                   ///< gradients
  std::map<std::string, Tensor> captures;  ///< of the real ones
  std::map<std::string, NamedOperand> operands;
};

/// o and lse by their definitions.
Solution naive_forward(const Problem& problem);
/// With the gradients of sum(o grad_o) + sum(lse grad_lse), by the chain rule pair by pair.
Solution naive(const Problem& problem);

/// sum(o grad_o) + sum(lse grad_lse) over rows with a finite lse.
double objective(const Problem& problem);

}  // namespace regard::kernels::testing
