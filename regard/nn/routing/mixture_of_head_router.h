#pragma once

#include "regard/nn/routing/mixture_of_head.h"

namespace regard::mixture_of_head {

/// What the router decided: gates (B, N, H) and, best first, the routed heads that each token chose, counted from 0,
/// (B, N, K) int64 (undefined when K is 0).
struct Routing {
  at::Tensor gates, chosen;
};

/// x (B, N, D), padding zeroed; q (B, H, N, Dh) before rotary. Leaves the balance loss with the context.
Routing route(const MixtureOfHead::Config& config, const Weights& weights, const at::Tensor& x, const at::Tensor& q,
              Context& context);

}  // namespace regard::mixture_of_head
