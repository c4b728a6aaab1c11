#pragma once

#include "regard/check/findings.h"
#include "regard/check/theorem.h"

namespace regard::checking {

/// A claim without its numbers: "outputs before token 5 stay ..." and "outputs before token 2 stay ..." are one claim.
std::string kind_of(const std::string& claim);

/// Makes the counterexample of `findings` smaller as long as the same kind of claim fails: one sample or two, a few
/// tokens, fewer inputs, no prefix; then weights and tokens of small integers, most of them zero. The width stays that
/// of its configuration. Returns the smallest found, with the error found in it.
Counterexample shrunk(const Theorem& theorem, const Counterexample& found);

}  // namespace regard::checking
