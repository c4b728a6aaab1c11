#pragma once

#include <string>
#include <vector>

namespace regard {

/// The candidate with the smallest edit distance to `name`, or "" when none is near (distance over half its length).
std::string nearest(const std::string& name, const std::vector<std::string>& candidates);

/// "; did you mean 'x'?" for the nearest candidate, or "" when none is near.
std::string suggestion(const std::string& name, const std::vector<std::string>& candidates);

/// "a, b, c" with each name quoted.
std::string quoted_list(const std::vector<std::string>& names);

}  // namespace regard
