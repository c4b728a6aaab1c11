#pragma once

#include <string_view>

#include "regard/ops/formula.h"
#include "regard/ops/paths.h"

/// Which path a call takes, and the stripe and composite paths over whole calls.
namespace regard::ops {

/// The tensors of a call as a flat list that stripes read, and the call made of such a list again.
std::vector<at::Tensor> tensors_of(const Call& call);
Call with_tensors(const Call& call, const std::vector<at::Tensor>& tensors);

/// The path that `requested` means for this call. Throws when a named path cannot run it, or in strict mode when the
/// automatic choice is not the fused path; the message says what stands in the way.
Path choose_path(const char* function, const Call& call, std::string_view requested);

/// Forward over all rows in stripes of `block` rows (0: at once, the composite path). In compute dtype.
Stripe attend_in_stripes(const Call& call, int64_t block);

/// Gradients over all rows, likewise; whole tensors, undefined where nothing was read.
StripeGradient attend_backward_in_stripes(const Call& call, int64_t block, const at::Tensor& grad_o,
                                          const at::Tensor& grad_lse, const at::Tensor& grad_pairs,
                                          const Wanted& wanted);

}  // namespace regard::ops
