// Schemas and backend kernels of regard::attention and regard::attention_backward: real ones (CPU, CUDA) and shape
// functions (Meta). Gradients are in attention_autograd.cpp, vmap in attention_vmap.cpp.
#include "regard/ops/attention_op.h"

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <algorithm>

#include "regard/base/error.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/blocked.h"
#include "regard/ops/boundary.h"
#include "regard/ops/stripe.h"

namespace regard::ops {
namespace {

/// The call that a list of tensors and its spec make.
Call call_of(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks, const OptionalTensor& seed,
             const c10::SymInt& query_offset) {
  require(tensors.size() >= 3, "attend", "q, k, v before the captures and operands",
          std::to_string(tensors.size()) + " tensors");
  const size_t captures = std::min(facts_of(spec)->captures.size(), tensors.size() - 3);
  return make_call("attention", tensors[0], tensors[1], tensors[2], spec, tensors.slice(3, captures),
                   tensors.slice(3 + captures), sinks, seed, query_offset);
}

AttentionResult attend_kernel(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks,
                              const OptionalTensor& seed, c10::SymInt query_offset, c10::string_view path) {
  const at::NoGradGuard below_autograd;  // inputs still say requires_grad here: stripes must not record themselves
  const Call call = call_of(tensors, spec, sinks, seed, query_offset);
  const Path chosen = choose_path("attention", call, path);
  count_path("attention", chosen);
  const Stripe out = chosen == Path::fused ? blocked_forward(call)
                                           : attend_in_stripes(call, chosen == Path::stripe ? stripe_rows(call) : 0);
  return {out.o.to(call.q.scalar_type()).contiguous(), out.lse.contiguous(), out.pairs.contiguous()};
}

AttentionResult attend_meta(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks,
                            const OptionalTensor& seed, c10::SymInt query_offset, c10::string_view path) {
  const Call call = call_of(tensors, spec, sinks, seed, query_offset);
  path_from_name("attention", path);
  const auto statistics = call.q.options().dtype(call.compute());
  return {at::empty_symint({call.B(), call.H(), call.M(), call.v.sym_size(3)}, call.q.options()),
          at::empty_symint({call.B(), call.H(), call.M()}, statistics),
          at::empty_symint({call.B(), call.H(), call.M(), call.facts->pair_channels}, statistics)};
}

AttentionResult attention_composite(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    c10::string_view spec, at::TensorList captures, at::TensorList operands,
                                    const OptionalTensor& sinks, const OptionalTensor& seed, c10::SymInt query_offset,
                                    c10::string_view path) {
  return call_attention(q, k, v, spec, captures, operands, sinks, seed, query_offset, path);
}

// ---- backward -----------------------------------------------------------------------------------

bool is_real(const at::Tensor& t) { return at::isFloatingType(t.scalar_type()); }

AttentionGradients attention_backward_kernel(const at::Tensor& grad_o, const OptionalTensor& grad_lse,
                                             const OptionalTensor& grad_pairs, const at::Tensor& o,
                                             const at::Tensor& lse, const at::Tensor& q, const at::Tensor& k,
                                             const at::Tensor& v, c10::string_view spec, at::TensorList captures,
                                             at::TensorList operands, const OptionalTensor& sinks,
                                             const OptionalTensor& seed, c10::SymInt query_offset,
                                             c10::string_view path, std::array<bool, 6> wanted) {
  const at::NoGradGuard below_autograd;
  const Call call = make_call("attention_backward", q, k, v, spec, captures, operands, sinks, seed, query_offset);
  const Path chosen = choose_path("attention_backward", call, path);
  count_path("attention_backward", chosen);
  const Wanted want{wanted[0], wanted[1], wanted[2], wanted[4], wanted[5], wanted[3]};
  const StripeGradient g = chosen == Path::fused
                               ? blocked_backward(call, o, lse, grad_o, defined(grad_lse), want)
                               : attend_backward_in_stripes(call, chosen == Path::stripe ? stripe_rows(call) : 0,
                                                            grad_o, defined(grad_lse), defined(grad_pairs), want);
  return packed(g, call, want);
}

AttentionGradients attention_backward_meta(const at::Tensor& grad_o, const OptionalTensor& grad_lse,
                                           const OptionalTensor& grad_pairs, const at::Tensor& o, const at::Tensor& lse,
                                           const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           c10::string_view spec, at::TensorList captures, at::TensorList operands,
                                           const OptionalTensor& sinks, const OptionalTensor& seed,
                                           c10::SymInt query_offset, c10::string_view path,
                                           std::array<bool, 6> wanted) {
  (void)grad_o, (void)grad_lse, (void)grad_pairs, (void)o, (void)lse, (void)spec, (void)seed, (void)query_offset,
      (void)path;
  const auto like = [](const at::Tensor& t, bool want) {
    return want && is_real(t) ? at::empty_symint(t.sym_sizes(), t.options()) : at::empty({0}, at::kMeta);
  };
  AttentionGradients out{like(q, wanted[0]), like(k, wanted[1]), like(v, wanted[2]), at::empty({0}, at::kMeta), {}, {}};
  if (sinks && sinks->defined()) std::get<3>(out) = like(sinks->dim() == 1 ? sinks->unsqueeze(1) : *sinks, wanted[3]);
  for (const auto& t : captures) std::get<4>(out).push_back(like(t, wanted[4]));
  for (const auto& t : operands) std::get<5>(out).push_back(like(t, wanted[5]));
  return out;
}

// ---- autocast: as torch's own attention, the matrix operands meet in the narrow dtype ----------------------------

template <c10::DeviceType device>
AttentionResult attend_autocast(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks,
                                const OptionalTensor& seed, c10::SymInt query_offset, c10::string_view path) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const size_t first_operand = 3 + facts_of(spec)->captures.size();
  std::vector<at::Tensor> cast = tensors.vec();
  for (size_t i = 0; i < cast.size(); ++i)  // captures keep their dtype: they enter the scores, not the products
    if (i < 3 || i >= first_operand)
      cast[i] = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), cast[i], device);
  return call_attend(cast, spec, sinks, seed, query_offset, path);
}

}  // namespace

at::Tensor defined(const OptionalTensor& t) { return t && t->defined() ? *t : at::Tensor(); }

AttentionGradients packed(const StripeGradient& g, const Call& call, const Wanted& wanted) {
  const auto gradient = [](const at::Tensor& d, const at::Tensor& input, bool want) {
    if (!want || !input.defined() || !is_real(input)) return at::empty({0});
    if (!d.defined()) return at::zeros_symint(input.sym_sizes(), input.options());
    return d.to(input.scalar_type()).contiguous();
  };
  AttentionGradients out{gradient(g.q, call.q, wanted.q),
                         gradient(g.k, call.k, wanted.k),
                         gradient(g.v, call.v, wanted.v),
                         gradient(g.sinks, call.sinks, wanted.sinks),
                         {},
                         {}};
  for (size_t i = 0; i < call.captures.size(); ++i)
    std::get<4>(out).push_back(gradient(g.captures[i], call.captures[i], wanted.captures));
  for (size_t i = 0; i < call.operands.size(); ++i)
    std::get<5>(out).push_back(gradient(g.operands[i], call.operands[i], wanted.operands));
  return out;
}

AttentionResult call_attend(at::TensorList tensors, c10::string_view spec, const OptionalTensor& sinks,
                            const OptionalTensor& seed, const c10::SymInt& query_offset, c10::string_view path) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("regard::attend", "").typed<decltype(attend_kernel)>();
  return op.call(tensors, spec, sinks, seed, query_offset, path);
}

AttentionResult call_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, c10::string_view spec,
                               at::TensorList captures, at::TensorList operands, const OptionalTensor& sinks,
                               const OptionalTensor& seed, const c10::SymInt& query_offset, c10::string_view path) {
  const auto facts = facts_of(spec);
  check_counts("attention", facts->captures.size(), facts->operands.size(), captures, operands);
  std::vector<at::Tensor> tensors = {q, k, v};
  tensors.insert(tensors.end(), captures.begin(), captures.end());
  tensors.insert(tensors.end(), operands.begin(), operands.end());
  return call_attend(tensors, spec, sinks, seed, query_offset, path);
}

AttentionGradients call_attention_backward(const at::Tensor& grad_o, const OptionalTensor& grad_lse,
                                           const OptionalTensor& grad_pairs, const at::Tensor& o, const at::Tensor& lse,
                                           const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           c10::string_view spec, at::TensorList captures, at::TensorList operands,
                                           const OptionalTensor& sinks, const OptionalTensor& seed,
                                           const c10::SymInt& query_offset, c10::string_view path,
                                           const std::array<bool, 6>& wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("regard::attention_backward", "")
                             .typed<decltype(attention_backward_kernel)>();
  return op.call(grad_o, grad_lse, grad_pairs, o, lse, q, k, v, spec, captures, operands, sinks, seed, query_offset,
                 path, wanted);
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, str spec, Tensor[] captures, Tensor[] operands, "
      "Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0, str path='auto') "
      "-> (Tensor o, Tensor lse, Tensor pairs)",
      guarded<&attention_composite>);
  m.def(
      "attend(Tensor[] tensors, str spec, Tensor? sinks, Tensor? seed, SymInt query_offset, str path) "
      "-> (Tensor o, Tensor lse, Tensor pairs)");
  m.def(
      "attention_backward(Tensor grad_o, Tensor? grad_lse, Tensor? grad_pairs, Tensor o, Tensor lse, Tensor q, Tensor "
      "k, "
      "Tensor v, str spec, Tensor[] captures, Tensor[] operands, Tensor? sinks, Tensor? seed, SymInt query_offset, "
      "str path, bool[6] wanted) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dsinks, Tensor[] dcaptures, Tensor[] "
      "doperands)");
}

TORCH_LIBRARY_IMPL(regard, CPU, m) {
  m.impl("attend", guarded<&attend_kernel>);
  m.impl("attention_backward", guarded<&attention_backward_kernel>);
}
TORCH_LIBRARY_IMPL(regard, CUDA, m) {
  m.impl("attend", guarded<&attend_kernel>);
  m.impl("attention_backward", guarded<&attention_backward_kernel>);
}
TORCH_LIBRARY_IMPL(regard, Meta, m) {
  m.impl("attend", guarded<&attend_meta>);
  m.impl("attention_backward", guarded<&attention_backward_meta>);
}
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) { m.impl("attention", guarded<&attention_composite>); }
TORCH_LIBRARY_IMPL(regard, AutocastCPU, m) { m.impl("attend", guarded<&attend_autocast<at::kCPU>>); }
TORCH_LIBRARY_IMPL(regard, AutocastCUDA, m) { m.impl("attend", guarded<&attend_autocast<at::kCUDA>>); }

}  // namespace regard::ops
