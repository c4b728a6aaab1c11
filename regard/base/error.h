#pragma once

#include <stdexcept>
#include <string>

namespace regard {

/// Every refusal of bad input: "[function] expected ...; found ...". Python sees a ValueError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error("[function] expected `expected`; found `found`").
[[noreturn]] void fail(const std::string& function, const std::string& expected, const std::string& found);

/// Throws as `fail` does unless `condition` holds. Build the texts only when they are cheap; otherwise test first.
inline void require(bool condition, const char* function, const char* expected, const std::string& found) {
  if (!condition) fail(function, expected, found);
}

}  // namespace regard
