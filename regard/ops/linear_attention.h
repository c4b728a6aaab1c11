#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <vector>

namespace regard {

/// What a call of `linear_attention` brings beside q, k, v. T is the number of keys; decays and beta belong to the key
/// heads.
struct LinearArguments {
  /// g <= 0, the logarithm of what a step keeps of the state, applied before its write: (Hk) fixed, (B,Hk,T) scalar,
  /// (B,Hk,T,Dk) one a key channel, (B,Hk,T,Dv) one a value channel (decay_side "value"). Undefined: nothing decays.
  at::Tensor log_decay;
  std::string decay_side = "key";  ///< of a decay of four dimensions: key | value
  at::Tensor beta;                 ///< (B,Hk,T): the delta rule with these strengths; undefined: plain sums
  at::Tensor initial_state;        ///< (B,Hk,Dk,Dv), float32 (float64 for float64); packed: (S,Hk,Dk,Dv)
  at::Tensor initial_z;            ///< (B,Hk,Dk) likewise, with normalize
  at::Tensor cu_seqlens;           ///< (S + 1) integer: B = 1 holds S sequences one after the other
  at::Tensor padding;              ///< (B,T) boolean, true where a key does not exist: it leaves the state alone
  bool causal = true;
  bool normalize = false;  ///< divides by s <q, z> + eps
  double eps = 1e-6;
  std::optional<double> scale;  ///< s; default Dk^-1/2, and 1 with normalize
  int64_t chunk = 0;            ///< C; 0: 64, and 128 where nothing decays
  std::string form = "auto";    ///< auto | chunked | recurrent: one result, other costs
  std::string path = "auto";    ///< auto | stripe | composite: chunks recomputed in the backward, or kept
  bool allow_growth = false;    ///< admits log_decay > 0
};

struct LinearOutput {
  at::Tensor o;      ///< (B,H,M,Dv), dtype of q
  at::Tensor state;  ///< S after the last key, (B,Hk,Dk,Dv), float32 (float64); packed: (S,Hk,Dk,Dv)
  at::Tensor z;      ///< (B,Hk,Dk) with normalize, else undefined
};

/// S_t = diag(e^g_t) S_{t-1} + k_t u_t^T,  o_t = s S_t^T q_t,  u_t = v_t, or with the delta rule
/// u_t = beta_t (v_t - (diag(e^g_t) S_{t-1})^T k_t);  normalized: o_t / (s <q_t, z_t> + eps), z_t = e^g_t z_{t-1} +
/// k_t.
///
/// q (B,H,M,Dk), k (B,Hk,T,Dk), v (B,Hk,T,Dv), after any feature map; query head h reads key head h // (H / Hk);
/// float64, float32, bfloat16, float16 (sums and states in float32 at least). A decay of the value channels: S_t =
/// S_{t-1} diag(e^g_t) + k_t v_t^T. Not causal: o_i = s S^T q_i with S of all keys and the initial state; M may differ
/// from T; no decay, no delta rule. A query that sees no key and no initial state gives 0.
///
/// Chunked: quadratic inside chunks of C tokens, one state between them, O(T) memory (each chunk is recomputed in the
/// backward); recurrent: the loop, for decoding. Exponents are never positive; -inf (a reset) is admitted.
/// Differentiable to any order and in forward mode, in all tensors; traces (a T not known while tracing runs as one
/// chunk). Normalizing asks for k, q >= 0 (a sum near 0 divides); the delta rule is stable for |k| = 1 and beta in (0,
/// 2).
///
/// Errors: shapes, Hk that does not divide H, log_decay > 0, a state of another shape or dtype, cu_seqlens that does
/// not begin at 0 and end at T or with B != 1, decay or delta without causal, normalize with the delta rule or a value
/// decay.
///
/// Papers: Katharopoulos et al., 2020, Transformers are RNNs; Yang et al., 2023, Gated Linear Attention; Yang et al.,
/// 2024, Parallelizing Linear Transformers with the Delta Rule; Yang et al., 2024, Gated Delta Networks.
LinearOutput linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const LinearArguments& arguments = {});

/// What a span of keys does to a state: S <- transition(S) + S', z likewise. Tensors that a call has no use for are
/// undefined. float32 (float64 for float64), differentiable.
struct LinearSpan {
  at::Tensor state;       ///< S' (B,Hk,Dk,Dv): what the span leaves of an empty state
  at::Tensor z;           ///< (B,Hk,Dk) with normalize
  at::Tensor log_decay;   ///< the sum of g: (B,Hk,1) scalar, (B,Hk,Dk), (B,Hk,Dv) on the value side; not with beta
  at::Tensor transition;  ///< delta rule: (B,Hk,Dk,Dk), decays included
  bool value_side = false;
};

/// The span of all keys of a call (B,Hk,T,Dk), (B,Hk,T,Dv); `arguments.initial_state` and `initial_z` are left out
/// (merge them in as an earlier span), packed sequences are refused.
LinearSpan span_summary(const at::Tensor& k, const at::Tensor& v, const LinearArguments& arguments);
/// The span of both: S = T2 S1 + S2, T = T2 T1. Associative, not commutative.
LinearSpan merge_spans(const LinearSpan& earlier, const LinearSpan& later);
/// What the span makes of a state (undefined: empty) and z.
LinearSpan after_span(const at::Tensor& initial_state, const at::Tensor& initial_z, const LinearSpan& span);
/// Its tensors, those undefined left out, in a fixed order, and back: what an executor sends.
std::vector<at::Tensor> tensors_of(const LinearSpan& span);
LinearSpan with_tensors(const LinearSpan& like, const std::vector<at::Tensor>& tensors);
/// Bytes of a summary: element size * B Hk (Dk Dv + [normalize] Dk + (delta: Dk Dk | decay: 1, Dk or Dv)).
int64_t span_bytes(const at::Tensor& k, const at::Tensor& v, const LinearArguments& arguments);

}  // namespace regard
