#pragma once

#include <ATen/ATen.h>

#include "regard/nn/context.h"

namespace regard {

/// y = x * m / (1 - p), m = 0 with probability p, else 1; x itself when p is 0 or the call does not train.
/// A pure function of (x, p, the next stream of the context): replayed equally by recomputation and on every device.
at::Tensor dropout(const at::Tensor& x, double p, Context& context);

/// Throws regard::Error unless 0 <= p < 1.
void require_probability(const char* function, const char* name, double p);

}  // namespace regard
