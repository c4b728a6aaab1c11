#pragma once

#include <optional>
#include <string>

#include "regard/ops/formula.h"

/// The kernels of regard/kernels behind tensors.
namespace regard::ops {

/// Why the fused path cannot run this call ("normalizer sigmoid", "device cuda"), or "" when it can.
std::string fused_refusal(const Call& call);

/// Forward on the kernels; outputs contiguous; o in compute dtype or in q's, lse in compute dtype.
Stripe blocked_forward(const Call& call);

/// Forward over pages (P, Hk, size, D) of a table (B, n) int64, contiguous, read where they lie; none where no kernel
/// does. k and v of the call stand for their lengths alone: (B, Hk, n * size, D).
std::optional<Stripe> paged_forward(const Call& call, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& table);

/// All gradients, in compute dtype, whole tensors.
StripeGradient blocked_backward(const Call& call, const at::Tensor& o, const at::Tensor& lse, const at::Tensor& grad_o,
                                const at::Tensor& grad_lse, const Wanted& wanted);

}  // namespace regard::ops
