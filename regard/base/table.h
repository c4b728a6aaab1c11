#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace regard {

/// Rows as aligned columns, two spaces between, a rule under the first row. The first `left` columns stand to the left,
/// the others (numbers) to the right. All rows are as long as the first.
std::string table(const std::vector<std::vector<std::string>>& rows, size_t left);

}  // namespace regard
