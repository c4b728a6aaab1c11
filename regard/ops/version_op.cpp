// torch.ops.regard.version() and built_with_torch() -> str: let a caller that loads the library tell which one it got.
#include <ATen/ATen.h>
#include <torch/headeronly/version.h>
#include <torch/library.h>

#include <string>

#include "regard/base/version.h"

TORCH_LIBRARY_FRAGMENT(regard, library) {
  library.def("version() -> str", [] { return std::string(regard::version()); });
  library.def("built_with_torch() -> str", [] { return std::string(TORCH_VERSION); });
}
