// torch.ops.regard.linear_attention: composite (implicit), so it owns no derivative and no fake kernel and traces down
// to torch's operations.

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "regard/ops/boundary.h"
#include "regard/ops/linear_attention.h"

namespace regard {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr const char* schema =
    "linear_attention(Tensor q, Tensor k, Tensor v, *, Tensor? log_decay=None, str decay_side=\"key\", "
    "Tensor? beta=None, Tensor? initial_state=None, Tensor? initial_z=None, Tensor? cu_seqlens=None, "
    "Tensor? padding=None, bool causal=True, bool normalize=False, float eps=1e-06, float? scale=None, int chunk=0, "
    "str form=\"auto\", str path=\"auto\", bool allow_growth=False) -> (Tensor o, Tensor state, Tensor z)";

at::Tensor value_of(const OptionalTensor& t) { return t && t->defined() ? *t : at::Tensor(); }

/// z is (B, Hk, 0) without normalize: an op returns tensors.
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_attention_op(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& log_decay,
    std::string decay_side, const OptionalTensor& beta, const OptionalTensor& initial_state,
    const OptionalTensor& initial_z, const OptionalTensor& cu_seqlens, const OptionalTensor& padding, bool causal,
    bool normalize, double eps, std::optional<double> scale, int64_t chunk, std::string form, std::string path,
    bool allow_growth) {
  LinearArguments a;
  a.log_decay = value_of(log_decay);
  a.decay_side = std::move(decay_side);
  a.beta = value_of(beta);
  a.initial_state = value_of(initial_state);
  a.initial_z = value_of(initial_z);
  a.cu_seqlens = value_of(cu_seqlens);
  a.padding = value_of(padding);
  a.causal = causal;
  a.normalize = normalize;
  a.eps = eps;
  a.scale = scale;
  a.chunk = chunk;
  a.form = std::move(form);
  a.path = std::move(path);
  a.allow_growth = allow_growth;
  const LinearOutput out = linear_attention(q, k, v, a);
  if (out.z.defined()) return {out.o, out.state, out.z};
  const c10::SymInt rows = out.state.sym_size(0), heads = out.state.sym_size(1);
  return {out.o, out.state, at::empty_symint({rows, heads, 0}, out.state.options().requires_grad(std::nullopt))};
}

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def(schema, guarded<&linear_attention_op>); }
// vmap asks for a rule even of a composite op: run it, and let the ops inside be batched.
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) {
  m.impl("linear_attention", guarded<&linear_attention_op>);
}

}  // namespace
}  // namespace regard
