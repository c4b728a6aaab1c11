#pragma once

#include <cstdint>

#include "regard/nn/context.h"

namespace regard {

/// Computes every wanted output "tap.NAME" (attention 0) or "tap.NAME@i" (attention i) of this attention and puts it
/// into the context:
///
///     q, k, v     the operands                                   o, lse   what the attention returned
void read_taps(Context& context, int64_t attention, const Attending& call, const AttentionOutput& out);

}  // namespace regard
