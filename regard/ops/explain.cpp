#include <torch/library.h>

#include "regard/algebra/spec.h"
#include "regard/kernels/attention.h"
#include "regard/ops/boundary.h"
#include "regard/ops/executor_offers.h"
#include "regard/ops/explain.h"

namespace regard {

std::string explain(const std::string& spec) {
  const auto resolved = intern(spec);
  const std::string refusal = kernels::refusal(*resolved);
  return to_string(*resolved) + "\nfused on CPU: " + (refusal.empty() ? "yes, " + kernels::isa() : "no: " + refusal) +
         "\noffers executors: " + to_string(offers(*resolved)) + "\n";
}

namespace {
std::string explain_op(std::string spec) { return explain(spec); }
}  // namespace

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("explain(str spec) -> str", guarded<&explain_op>); }

}  // namespace regard
