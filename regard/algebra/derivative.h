#pragma once

#include <vector>

#include "regard/algebra/expr.h"

namespace regard {

/// d f / d x for every leaf x in `leaves` (each a dot or a real capture read with its indices), symbolic,
/// the constant 0 where f does not read it. `f` is real. Reverse mode over the shared graph, so the size stays linear.
std::vector<Expr> gradient(const Expr& f, const std::vector<Expr>& leaves);

/// The distinct dots, and the distinct real capture reads, that the expressions contain, in the order of `flatten`.
std::vector<Expr> dots_of(const std::vector<Expr>& expressions);
std::vector<Expr> real_captures_of(const std::vector<Expr>& expressions);

}  // namespace regard
