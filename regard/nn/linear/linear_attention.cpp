#include "regard/nn/linear/linear_attention.h"

#include <ATen/OpMathType.h>

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/linear/linear_attention_features.h"
#include "regard/nn/shapes.h"
#include "regard/ops/linear_attention.h"

namespace regard {
namespace {

using Config = LinearAttention::Config;
constexpr const char* id = "linear-attention";

at::Tensor zeroed(const at::Tensor& tokens, const at::Tensor& where) {
  return where.defined() ? tokens.masked_fill(where.unsqueeze(2), 0) : tokens;
}

/// The tokens that keys and values are made of, padding zeroed.
at::Tensor source_of(const Config& config, const at::Tensor& x, const Context& context) {
  const at::Tensor memory = context.input("memory"), lengths = context.input("memory_lengths");
  const std::string shape = "memory (B, N, " + std::to_string(config.source_width()) + ")";
  if (!memory.defined()) {
    if (config.source_width() != config.width) fail(id, shape + ", since memory_width is not width", "none");
    require(!lengths.defined(), id, "memory with memory_lengths", "memory_lengths alone");
    return x;
  }
  require(!config.causal, id, "causal = false with memory", "causal = true");
  if (memory.dim() != 3 || memory.sym_size(2) != config.source_width() || memory.sym_size(0) != x.sym_size(0))
    fail(id, shape + " with the batch of x " + describe(x), describe(memory));
  return zeroed(memory, context.padding(memory, lengths));
}

/// phi of one projection, (B, H, T, F).
at::Tensor features(const Config& config, const Weights& weights, const at::Tensor& heads, char which) {
  at::Tensor phi = features_of(config, weights, heads, which);
  if (which == 'q' ? config.norm_q : config.norm_k) phi = phi / (phi.sum(-1, true) + 1e-4);
  // 1e-6 under the root, as fla: the length of a zero vector has a gradient too.
  if (config.unit_keys) phi = phi * (phi * phi).sum(-1, true).add(1e-6).rsqrt();
  return phi.to(heads.scalar_type());
}

/// As at::log_sigmoid, whose backward torch traces with other strides than it runs with.
at::Tensor log_of_sigmoid(const at::Tensor& x) {
  return -at::logaddexp(-x, at::zeros({}, x.options().requires_grad(std::nullopt)));
}

/// g: (Hk) | (B, Hk, T) | (B, Hk, T, F), in float32 at least, or undefined.
at::Tensor log_decay_of(const Config& config, const Weights& weights, const at::Tensor& x) {
  const at::ScalarType type = at::toOpMathType(x.scalar_type());
  if (config.decay == "fixed") {
    const at::Tensor h = at::arange(config.key_heads(), x.options().dtype(type).requires_grad(std::nullopt));
    return at::log1p(-at::exp2(-5 - h));
  }
  if (config.decay == "scalar" && config.decay_form == "exponential") {
    const at::Tensor step = at::softplus(weights.linear(x, "a_proj").to(type) + weights["dt_bias"].to(type));
    return (-weights["A_log"].to(type).exp() * step).transpose(1, 2);
  }
  if (config.decay == "scalar")
    return (log_of_sigmoid(weights.linear(x, "gk_proj").to(type)) / config.gate_divisor).transpose(1, 2);
  if (config.decay == "key_vector") {
    const at::Tensor gate = weights.linear(weights.linear(x, "gk_proj.0"), "gk_proj.1");
    return log_of_sigmoid(split_heads(gate, config.key_heads()).to(type)) / config.gate_divisor;
  }
  return {};
}

/// RMSNorm of each head and the gate: o (B, H, T, Dv) to (B, T, H Dv).
at::Tensor finished(const Config& config, const Weights& weights, const at::Tensor& o, const at::Tensor& x) {
  at::Tensor y = o.transpose(1, 2);  // (B, T, H, Dv)
  if (config.output_norm || config.output_gate) {
    const at::Tensor wide = y.to(at::toOpMathType(y.scalar_type()));
    const at::Tensor root = wide.square().mean(-1, true).add(config.norm_epsilon).rsqrt();
    y = (wide * root).to(y.scalar_type()) * weights[config.norm_name()].to(y.scalar_type());
  }
  y = y.flatten(2);
  return config.output_gate ? y * at::silu(weights.linear(x, "g_proj")) : y;
}

}  // namespace

at::Tensor LinearAttention::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                    Context& context) {
  const at::Tensor padded = context.padding(given), x = zeroed(given, padded);
  const at::Tensor source = source_of(config, x, context);
  const auto heads = [&](const at::Tensor& tokens, char which) {
    return split_heads(weights.linear(tokens, config.projection(which)),
                       which == 'q' ? config.heads : config.key_heads());
  };
  const at::Tensor v = heads(source, 'v');
  const at::Tensor q = features(config, weights, heads(x, 'q'), 'q').to(v.scalar_type());
  const at::Tensor k = features(config, weights, heads(source, 'k'), 'k').to(v.scalar_type());

  LinearArguments arguments;
  arguments.causal = config.causal;
  arguments.normalize = config.normalized();
  arguments.eps = config.eps;
  arguments.scale = config.scale;
  arguments.chunk = config.chunk;
  arguments.log_decay = log_decay_of(config, weights, x);
  if (config.delta) {
    const at::Tensor b = weights.linear(x, "b_proj");
    arguments.beta = (at::sigmoid(b.to(at::toOpMathType(b.scalar_type()))) * config.beta_range).transpose(1, 2);
  }
  if (context.wants("attn")) {
    context.whole_only(id, "a map of all tokens");
    const at::Tensor one =
        at::ones_symint({v.sym_size(0), v.sym_size(1), v.sym_size(2)}, v.options().requires_grad(std::nullopt));
    context.output("attn", context.linear(q, k, at::diag_embed(one), arguments).o);
  }
  arguments.initial_state = context.state("S");
  if (arguments.normalize) arguments.initial_z = context.state("z");
  const LinearOutput mixed = context.linear(q, k, v, arguments);
  if (context.decoding()) {
    context.store("S", mixed.state);
    if (arguments.normalize) context.store("z", mixed.z);
  }
  const at::Tensor y = weights.linear(finished(config, weights, mixed.o, x), config.projection('o'));
  return zeroed(y, padded);
}

REGARD_MECHANISM(LinearAttention)

}  // namespace regard
