#pragma once

#include <array>

#include "tests/kernels/cases.h"
#include "tests/kernels/run.h"

/// Problems in bfloat16 run by the AMX kernel, and what rounding to bfloat16 may do to their solutions.
namespace regard::kernels::testing {

double to_bf16(double value);  ///< rounded to nearest, ties to even
std::string describe(const Shape4& shape);

/// Plain or causal attention on numbers that bf16 holds exactly.
Problem amx_problem(const Shape4& shape, bool causal, int64_t query_offset, uint32_t seed);

/// Forward and backward; outputs poisoned beforehand. `wanted`: the gradients of q, k, v that are asked for.
Solution run_amx(const Problem& problem, Layout layout = Layout::contiguous,
                 std::array<bool, 3> wanted = {true, true, true});

/// How far each element may lie from `exact` when weights, score gradients and outputs are rounded to `rounding`
/// relative and all else to `other`.
Solution amx_bounds(const Problem& problem, const Solution& exact, double rounding, double other);

/// The solution in float64 but for rounding weights, score gradients and outputs to bf16.
Solution amx_simulated(const Problem& problem);

}  // namespace regard::kernels::testing
