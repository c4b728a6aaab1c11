#pragma once

#include <string>
#include <vector>

#include "tests/kernels/problem.h"

namespace regard::kernels::testing {

/// How tensors lie in memory: rows in order; (B, L, H, D); rows in order with gaps that hold NaN, features reversed;
/// (B, L, H, D) with such gaps behind the features.
enum class Layout { contiguous, heads_inside, gaps, rows_apart };

/// The problem solved by the kernel in T: forward and backward, outputs poisoned with NaN beforehand.
template <class T>
Solution run_kernel(const Problem& problem, Layout layout = Layout::contiguous, bool backward = true);

/// The largest difference over the largest magnitude (at least `least`) of `expected`; infinite where one is NaN, or
/// where only one is infinite.
double error_of(const Tensor& found, const Tensor& expected, double least = 1e-3);

/// The magnitude below which a tensor of this problem counts as zero. Gradients of z-scores are what remains of sums
/// over the rows that cancel, all of it where a row has one key.
double least_of(const Problem& problem);

/// Expects every tensor of the two solutions alike; `what` names the case.
void expect_alike(const Solution& found, const Solution& expected, double tolerance, const std::string& what,
                  double least = 1e-3);

Tensor first_batch(const Tensor& tensor);

/// Whether all bits are equal.
bool identical(const Solution& a, const Solution& b);

}  // namespace regard::kernels::testing
