// Spans of keys as values: what a span does to a state, merged in order.

#include <limits>

#include "regard/base/error.h"
#include "regard/ops/linear_attention_parts.h"

namespace regard {
namespace {

using ops::Decay;

/// log_decay (B,Hk,D) as a factor of a state (B,Hk,Dk,Dv).
at::Tensor factor_of(const LinearSpan& span) {
  const at::Tensor kept = span.log_decay.exp();
  return kept.unsqueeze(span.value_side ? 2 : 3);
}

at::Tensor plus(const at::Tensor& a, const at::Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }

/// What the span makes of (.., Dk, anything).
at::Tensor through(const LinearSpan& span, const at::Tensor& state) {
  if (!state.defined()) return state;
  if (span.transition.defined()) return at::matmul(span.transition, state);
  return span.log_decay.defined() ? state * factor_of(span) : state;
}

at::Tensor z_through(const LinearSpan& span, const at::Tensor& z) {
  return z.defined() && span.log_decay.defined() ? z * span.log_decay.exp() : z;
}

}  // namespace

LinearSpan span_summary(const at::Tensor& k, const at::Tensor& v, const LinearArguments& given) {
  using namespace ops;
  require(!given.cu_seqlens.defined(), "span_summary", "one sequence a row", "cu_seqlens");
  LinearArguments a = given;
  a.initial_state = a.initial_z = at::Tensor();
  const LinearForm form = check_linear("span_summary", {}, k, v, a);
  LinearTokens t = tokens_of(form, {}, k, v, a);
  const c10::SymInt B = k.sym_size(0), H = k.sym_size(1), D = k.sym_size(3), T = k.sym_size(2);
  const auto real = k.options().dtype(form.compute).requires_grad(std::nullopt);
  at::Tensor state = at::zeros_symint({B, H, D, t.v.sym_size(3)}, real);
  if (t.beta.defined()) {
    // The delta rule is linear in the state: the columns of the identity, carried without values, become the
    // transition.
    t.v = at::cat({t.v, at::zeros_symint({B, H, T, D}, v.options().requires_grad(std::nullopt))}, 3);
    state = at::cat({state, at::diag_embed(at::ones_symint({B, H, D}, real))}, 3);
  }
  // Without queries only the delta rule looks at pairs; the rest is one product over all tokens.
  constexpr int64_t delta_chunk = 64;
  const auto count = T.maybe_as_int();
  const int64_t chunk = a.chunk > 0 ? a.chunk : t.beta.defined() ? delta_chunk : std::numeric_limits<int64_t>::max();
  const at::Tensor end = count && *count == 0 ? state : linear_walk(form, t, state, chunk, true).state;
  LinearSpan span;
  span.value_side = form.decay == Decay::value;
  if (t.beta.defined()) {
    span.state = end.slice_symint(3, 0, v.sym_size(3));
    span.transition = end.slice_symint(3, v.sym_size(3));
    return span;
  }
  span.state = form.normalize ? end.slice(3, 0, -1) : end;
  if (form.normalize) span.z = end.select(3, -1);
  if (form.decay != Decay::none) span.log_decay = cut_decay(t.decay).sum(2).to(form.compute);
  return span;
}

LinearSpan merge_spans(const LinearSpan& earlier, const LinearSpan& later) {
  require(earlier.z.defined() == later.z.defined() && earlier.transition.defined() == later.transition.defined() &&
              earlier.log_decay.defined() == later.log_decay.defined() && earlier.value_side == later.value_side,
          "merge_spans", "spans of one kind", "two kinds");
  LinearSpan span;
  span.value_side = later.value_side;
  span.state = through(later, earlier.state) + later.state;
  if (later.z.defined()) span.z = z_through(later, earlier.z) + later.z;
  if (later.log_decay.defined()) span.log_decay = earlier.log_decay + later.log_decay;
  if (later.transition.defined()) span.transition = at::matmul(later.transition, earlier.transition);
  return span;
}

LinearSpan after_span(const at::Tensor& initial_state, const at::Tensor& initial_z, const LinearSpan& span) {
  LinearSpan out = span;
  out.state = plus(through(span, initial_state), span.state);
  if (span.z.defined()) out.z = plus(z_through(span, initial_z), span.z);
  return out;
}

std::vector<at::Tensor> tensors_of(const LinearSpan& span) {
  std::vector<at::Tensor> list;
  for (const at::Tensor& t : {span.state, span.z, span.log_decay, span.transition})
    if (t.defined()) list.push_back(t);
  return list;
}

LinearSpan with_tensors(const LinearSpan& like, const std::vector<at::Tensor>& tensors) {
  LinearSpan span = like;
  size_t next = 0;
  for (at::Tensor* t : {&span.state, &span.z, &span.log_decay, &span.transition}) {
    if (!t->defined()) continue;
    require(next < tensors.size(), "with_tensors", "as many tensors as the span has", std::to_string(tensors.size()));
    *t = tensors[next++];
  }
  require(next == tensors.size(), "with_tensors", "as many tensors as the span has", std::to_string(tensors.size()));
  return span;
}

int64_t span_bytes(const at::Tensor& k, const at::Tensor& v, const LinearArguments& a) {
  const int64_t Dk = k.size(3), Dv = v.size(3), heads = k.size(0) * k.size(1);
  int64_t entries = Dk * Dv + (a.normalize ? Dk : 0);
  if (a.beta.defined()) {
    entries += Dk * Dk;
  } else if (a.log_decay.defined()) {
    entries += a.log_decay.dim() < 4 ? 1 : a.decay_side == "value" ? Dv : Dk;
  }
  return heads * entries * (k.scalar_type() == at::kDouble ? 8 : 4);
}

}  // namespace regard
