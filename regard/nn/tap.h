#pragma once

#include <cstdint>
#include <string>

#include "regard/nn/context.h"

namespace regard {

/// Computes every wanted output "tap.NAME" (attention 0) or "tap.NAME@i" (attention i) of this attention and puts it
/// into the context:
///
///     q, k, v     the operands                                   o, lse   what the attention returned
///     entropy, mass:0, top_k:8, column_sums, ...                 the reductions of regard/ops/taps.h
///
/// of the attention as it ran: packed, cached, edited. "marked_mass" reads the input "tap.marked".
void read_taps(Context& context, int64_t attention, const Attending& call, const AttentionOutput& out);

/// Throws for an output "tap...." that is of no such form.
void check_tap_output(const std::string& wanted);

}  // namespace regard
