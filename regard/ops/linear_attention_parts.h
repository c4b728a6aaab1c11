#pragma once

#include "regard/ops/linear_attention.h"

#include <vector>

/// The pieces that the forms of linear attention share. Everything here is in the layout of the key heads: the queries
/// that read one key head are an axis G of their own.
namespace regard::ops {

enum class Decay : uint8_t { none, scalar, key, value };

/// Tokens of one call, one segment or one chunk, in their own dtypes.
struct LinearTokens {
  at::Tensor q;      ///< (B,Hk,G,M,Dk); undefined: only the state is asked
  at::Tensor k, v;   ///< (B,Hk,T,Dk) (B,Hk,T,Dv)
  at::Tensor decay;  ///< (B,Hk,T,1 | Dk | Dv) or undefined
  at::Tensor beta;   ///< (B,Hk,T,1) or undefined
};

/// How a call computes.
struct LinearForm {
  Decay decay = Decay::none;
  bool causal = true, normalize = false;
  double eps = 0, scale = 1;
  at::ScalarType compute = at::kFloat;  ///< of sums, states and solves
};

struct LinearStep {
  at::Tensor o;      ///< (B,Hk,G,M,Dv) in compute; undefined without q
  at::Tensor state;  ///< (B,Hk,Dk,Dv or Dv + 1)
};

/// The tokens where `gone` (B,1,T,1) write nothing and keep the state.
LinearTokens without(const LinearTokens& tokens, const at::Tensor& gone);

/// Checks every argument. `q` may be undefined (a span).
LinearForm check_linear(const char* function, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const LinearArguments& arguments);
/// The tokens with padding zeroed (no write, no decay) and, where normalized, the value column of ones that sums z.
LinearTokens tokens_of(const LinearForm& form, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const LinearArguments& arguments);

/// One chunk, quadratic in its tokens.
LinearStep linear_chunk(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& state);
/// Token by token.
LinearStep linear_loop(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& state);
/// Chunk by chunk; `recompute`: chunks are computed again in the backward, so that only their states are kept.
LinearStep linear_walk(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& state, int64_t chunk,
                       bool recompute);

/// Packed sequences whose bounds (S + 1) cannot be read while tracing: each a row of a padded batch, as one chunk.
LinearStep linear_packed_traced(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& states,
                                const at::Tensor& bounds);
/// S = sum_j k_j v_j^T of all keys, read by every query.
LinearStep linear_everywhere(const LinearForm& form, const LinearTokens& tokens, const at::Tensor& state);

/// g with -inf cut to where e^g is 0 in every type, in float64: sums of it keep their small differences.
at::Tensor cut_decay(const at::Tensor& log_decay);

}  // namespace regard::ops
