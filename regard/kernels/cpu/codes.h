#pragma once

#include "regard/algebra/expr.h"
#include "regard/kernels/cpu/tile.h"

namespace regard::kernels {

/// The tile operation of an operator whose result and (first) argument have these types.
Code code_of(Op op, Type result, Type argument);

}  // namespace regard::kernels
