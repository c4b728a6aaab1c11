#pragma once

#include "regard/nn/mechanism.h"

namespace regard {

/// Linear attention: the softmax weight exp(<q, k>) becomes <phi(q), phi(k)>, so that the sum over keys is one matrix.
///
///     S_t = diag(a_t) S_{t-1} + phi(k_t) u_t^T,   o_t = s S_t^T phi(q_t)  [/ (s <phi(q_t), z_t> + eps)],   y = out(o)
///     u_t = v_t, or with `delta` b_t (v_t - (diag(a_t) S_{t-1})^T phi(k_t));  z_t sums phi(k) as S sums phi(k) v^T
///
/// x (B, T, D); not causal: S of all tokens, or of the input `memory` (B, N, Dm). y (B, T, D). The families are
/// configurations:
///
///     Transformers are RNNs (idiap)  the defaults; names "idiap" with qkv_bias, out_bias
///     fla LinearAttention            normalize false, output_norm
///     GLA                            feature_map "identity", decay "key_vector", output_gate, key_width D / 2H
///     SimpleGLA, RetNet              feature_map "identity", decay "scalar" or "fixed", output_gate
///     DeltaNet                       feature_map "silu", unit_keys, delta, output_norm
///     Gated DeltaNet                 the same, decay "scalar", decay_form "exponential", output_gate
///
/// Feature maps phi, per head: elu1 = elu(x) + 1; relu; identity; silu; softmax over Dk; dpfp (`dpfp_order` rolls of
/// [relu x, -relu x] times itself); t2r = relu(W x); hadamard = (W1 x + b1) (W2 x + b2); hedgehog = softmax([2y, -2y]),
/// y = W x + b; taylor2, whose inner product is 1 + c + c^2 / 2, c = <q, k> / sqrt(Dk).
/// Decays: fixed a_h = 1 - 2^(-5-h); decay_form "sigmoid": a = sigmoid(g)^(1 / gate_divisor), g linear in x (of rank
/// gate_rank for key_vector); "exponential": a = exp(-e^A_log softplus(g + dt_bias)), scalar only.
/// `lengths`, `memory_lengths`: padding writes nothing and leaves the state; its y is 0. Packed sequences start from an
/// empty state each. A decode keeps S and z: (Hk, F, Dv), (Hk, F), float32 at least. Output `attn` (B, H, M, N): what
/// each value weighs, sums of it 1 where normalized.
///
/// Weights, as fla's: q_proj, k_proj, v_proj, o_proj (idiap: query_projection, key_projection, value_projection,
/// out_projection); gk_proj, gk_proj.0 and .1, or a_proj, A_log, dt_bias; b_proj; g_proj; norm.weight,
/// g_norm_swish_gate.weight or o_norm.weight (Dv); feature_map_q, feature_map_k .layer, .layer1, .layer2.
/// Errors: heads that do not divide, causal with memory, decay or delta without causal, normalize with delta or with a
/// feature map of both signs (unless allow_signed), by name.
///
/// Papers: Katharopoulos et al., 2020 (arXiv 2006.16236); Yang et al., 2023, GLA (2312.06635); Yang et al., 2024,
/// DeltaNet (2406.06484); Yang et al., 2024, Gated DeltaNet (2412.06464); Schlag et al., 2021 (dpfp); Kasai et al.,
/// 2021 (t2r); Zhang et al., 2024 (hedgehog); Arora et al., 2024 (taylor2).
struct LinearAttention {
  struct Config {
    int64_t width = 0;          ///< D
    int64_t heads = 4;          ///< H
    int64_t kv_heads = 0;       ///< Hk; 0: H
    int64_t key_width = 0;      ///< Dk; 0: D / H
    int64_t value_width = 0;    ///< Dv; 0: D / H
    int64_t memory_width = 0;   ///< Dm; 0: D
    std::string names = "fla";  ///< fla | idiap
    bool qkv_bias = false;
    bool out_bias = false;
    bool causal = true;
    std::string feature_map = "elu1";
    int64_t dpfp_order = 1;
    bool feature_bias = true;  ///< of hadamard and hedgehog
    bool norm_q = false;       ///< phi(q) / (sum phi(q) + 1e-4)
    bool norm_k = false;
    bool unit_keys = false;         ///< phi(q), phi(k) of length 1
    std::optional<bool> normalize;  ///< default: where phi has one sign, without delta
    bool allow_signed = false;
    double eps = 1e-6;
    std::optional<double> scale;  ///< s; default F^-1/2, and 1 where normalized
    std::string decay = "none";   ///< none | fixed | scalar | key_vector
    std::string decay_form = "sigmoid";
    double gate_divisor = 16;
    int64_t gate_rank = 16;
    bool delta = false;
    double beta_range = 1;     ///< b = beta_range * sigmoid(b_proj x); 2 admits negative eigenvalues
    bool output_norm = false;  ///< RMSNorm of each head's o
    bool output_gate = false;  ///< RMSNorm of each head's o, times swish(g_proj x)
    double norm_epsilon = 1e-5;
    int64_t chunk = 0;  ///< tokens; 0: 64, and 128 where nothing decays
    void fields(Fields& f);
    void validate() const;

    int64_t key_heads() const { return kv_heads ? kv_heads : heads; }
    int64_t keys_width() const { return key_width ? key_width : width / heads; }
    int64_t values_width() const { return value_width ? value_width : width / heads; }
    int64_t source_width() const { return memory_width ? memory_width : width; }
    int64_t features() const;  ///< F, the width of phi
    bool normalized() const;
    const char* norm_name() const {
      return delta ? "o_norm.weight" : output_gate ? "g_norm_swish_gate.weight" : "norm.weight";
    }
    /// The weights' name of q, k, v or o.
    std::string projection(char which) const;
  };
  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static std::vector<CacheStream> caches(const Config& config);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

}  // namespace regard
