#pragma once

#include <functional>
#include <vector>

#include "regard/ops/call.h"

/// Attention and its vector-Jacobian product over a stripe of query rows, written in ATen operations alone: the
/// reference of every faster path, differentiable and traceable. Memory: a few (B, H, m, N) tensors, m the rows of the
/// stripe.
namespace regard::ops {

struct Stripe {
  at::Tensor o;      ///< (B,H,m,Dv), compute dtype
  at::Tensor lse;    ///< (B,H,m), see Normalized::statistic
  at::Tensor pairs;  ///< (B,H,m,C)
};

/// Replaces the weights (B,H,m,N) of a stripe.
using WeightChange = std::function<at::Tensor(const at::Tensor& weights)>;

/// o_i = sum_j normalizer(score_i.)_j weight_ij v_j and its by-products for the given rows; with `change`, the weights
/// that it returns are summed in place of them.
Stripe attend(const Call& call, const Rows& rows, const WeightChange& change = {});

/// The weights normalizer(score)_ij weight_ij themselves, (B,H,m,N); 0 where not kept.
at::Tensor attention_weights(const Call& call, const Rows& rows);

/// Which gradients are wanted.
struct Wanted {
  bool q = true, k = true, v = true, captures = true, operands = true, sinks = true;
};

/// Gradients of a stripe in compute dtype. q-like ones hold the stripe's rows, all others are its contribution to a
/// sum.
struct StripeGradient {
  at::Tensor q, k, v, sinks;
  std::vector<at::Tensor> captures;  ///< undefined for captures that are not real; see capture_row_dims
  std::vector<at::Tensor> operands;  ///< q_x (rows), k_x (sum) of each
};

/// For each capture the dimension that follows the query rows in every read of it, along which a stripe's gradient
/// holds the stripe's rows only; -1: the gradient has the capture's shape and stripes add.
std::vector<int64_t> capture_row_dims(const Call& call);

/// grad_o (B,H,m,Dv), grad_lse (B,H,m) and grad_pairs (B,H,m,C): the stripe's rows; the last two may be undefined.
StripeGradient attend_backward(const Call& call, const Rows& rows, const at::Tensor& grad_o, const at::Tensor& grad_lse,
                               const at::Tensor& grad_pairs, const Wanted& wanted = {});

}  // namespace regard::ops
