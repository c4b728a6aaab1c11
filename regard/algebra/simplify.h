#pragma once

#include <vector>

#include "regard/algebra/expr.h"

namespace regard {

/// A simpler equal of op(args), or an empty Expr. `args` are already promoted. No rule changes what NaN and
/// infinity give, save that x + 0 forgets the sign of a zero.
Expr simplify(Op op, Type type, const std::vector<Expr>& args);

}  // namespace regard
