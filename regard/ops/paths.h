#pragma once

#include <string>
#include <string_view>

/// Paths are counted: every op says which path ran, tests assert it, benchmarks print it.
namespace regard {

enum class Path : uint8_t { automatic, fused, stripe, composite };

const char* name_of(Path path);
Path path_from_name(std::string_view function, std::string_view name);

/// Adds one to the counter of `op` (process-wide).
void count_path(const char* op, Path path);

/// {"attention": {"fused": 3, "stripe": 0, "composite": 1}, ...}
std::string path_counts();
void reset_path_counts();

/// With strict on, an automatic choice that is not the fused path is an error. Returns the old value.
bool set_strict(bool strict);
bool strict();

}  // namespace regard
