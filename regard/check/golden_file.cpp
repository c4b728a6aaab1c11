#include "regard/check/golden_case.h"
#include "regard/base/error.h"
namespace regard::checking {
GoldenFile read_golden_file(const std::string& path) { fail("golden", "x", path); }
}  // namespace regard::checking
