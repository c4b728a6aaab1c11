// Forms of linear attention without a walk: keys that every query sees, and packed sequences while tracing.

#include <ATen/autocast_mode.h>

#include "regard/ops/linear_attention_parts.h"

namespace regard::ops {

LinearStep linear_everywhere(const LinearForm& form, const LinearTokens& t, const at::Tensor& state) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  LinearStep step;
  step.state = state + at::matmul(t.k.to(form.compute).transpose(2, 3), t.v.to(form.compute));
  step.o = at::matmul(t.q.to(form.compute) * form.scale, step.state.unsqueeze(2));
  if (form.normalize) step.o = step.o.slice(4, 0, -1) / (step.o.slice(4, -1) + form.eps);
  return step;
}

LinearStep linear_packed_traced(const LinearForm& form, const LinearTokens& t, const at::Tensor& states,
                                const at::Tensor& given) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::Tensor bounds = given.to(at::kLong), begin = bounds.slice(0, 0, -1), end = bounds.slice(0, 1);
  const at::Tensor token = at::arange(at::Scalar(t.k.sym_size(2)), bounds.options());
  const at::Tensor places = begin.unsqueeze(1) + token;  // (S,T): the token of each place of each row
  const at::Tensor gone = places.ge(end.unsqueeze(1));
  const at::Tensor read = places.masked_fill(gone, 0).flatten();
  const auto rows = [&](const at::Tensor& x, int64_t dim) {  // (1,..,T,D) to (S,..,T,D)
    if (!x.defined()) return x;
    return x.index_select(dim, read).unflatten_symint(dim, {begin.sym_size(0), -1}).movedim(dim, 0).squeeze(1);
  };
  const LinearTokens all{rows(t.q, 3), rows(t.k, 2), rows(t.v, 2), rows(t.decay, 2), rows(t.beta, 2)};
  const LinearTokens padded = without(all, gone.unsqueeze(1).unsqueeze(3));
  LinearStep step = form.causal ? linear_chunk(form, padded, states) : linear_everywhere(form, padded, states);
  const at::Tensor segment = at::bucketize(token, end.contiguous(), /*out_int32=*/false, /*right=*/true);
  const at::Tensor place = segment * t.k.sym_size(2) + token - begin.index_select(0, segment);
  step.o = step.o.movedim(0, 2).flatten(2, 3).index_select(2, place).unsqueeze(0);
  return step;
}

}  // namespace regard::ops
