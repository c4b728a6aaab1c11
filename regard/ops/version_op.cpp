// torch.ops.regard.version() -> str: lets a caller that loads the library tell which one it got.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <string>

#include "regard/base/version.h"

TORCH_LIBRARY_FRAGMENT(regard, library) {
  library.def("version() -> str", [] { return std::string(regard::version()); });
}
