#include "regard/nn/dense/head_groups.h"

#include <torch/library.h>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"
#include "regard/ops/boundary.h"

namespace regard {

at::Tensor mean_pool_heads(const at::Tensor& weight, int64_t heads, int64_t kv_heads) {
  constexpr const char* name = "mean_pool_heads";
  if (kv_heads < 1 || heads % kv_heads != 0)
    fail(name, "heads to be a multiple of kv_heads", std::to_string(heads) + ", kv_heads " + std::to_string(kv_heads));
  if (!weight.is_floating_point() || weight.dim() < 1 || weight.sym_size(0) % heads != 0)
    fail(name, "a weight (H Dh, ...) of a floating type, H = " + std::to_string(heads), describe(weight));
  return weight.unflatten(0, {kv_heads, heads / kv_heads, -1}).mean(1).flatten(0, 1);
}

namespace {

at::Tensor mean_pool_heads_op(const at::Tensor& weight, int64_t heads, int64_t kv_heads) {
  return mean_pool_heads(weight, heads, kv_heads);
}

TORCH_LIBRARY_FRAGMENT(regard, library) {
  library.def("mean_pool_heads(Tensor weight, int heads, int kv_heads) -> Tensor", guarded<&mean_pool_heads_op>);
}

}  // namespace
}  // namespace regard
