#pragma once

#include <string>
#include <vector>

namespace regard {

/// The program: `regard ARGUMENTS...`. Returns the exit status: 0, 1 when something was checked and found wrong, 2 for
/// wrong input (one line on stderr), 130 when interrupted. Behind torch.ops.regard.cli and the C++ main alike.
int cli(const std::vector<std::string>& arguments);

}  // namespace regard
