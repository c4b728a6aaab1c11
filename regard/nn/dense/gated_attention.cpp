#include "regard/nn/dense/gated_attention.h"

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/rotary.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/rms_norm.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = GatedAttention::Config;
constexpr const char* id = "gated-attention";

at::Tensor activated(const Config& config, const at::Tensor& z) {
  if (config.activation == "silu" || (config.activation == "auto" && config.additive)) return at::silu(z);
  return config.activation == "ns_sigmoid" ? 0.5 + 0.5 * at::sigmoid(z) : at::sigmoid(z);
}

/// z of the gate that is not merged into q_proj, from the tokens that own Y: (B, heads, L, channels), or for
/// (B, L, D) at G5 (B, L, D). Input independent: the same without B and L, broadcast.
at::Tensor own_gate(const Config& config, const Weights& weights, const at::Tensor& tokens) {
  if (config.position == "G5")
    return config.input_independent ? weights["gate"].squeeze(0) : weights.linear(tokens, "gate_proj");
  if (config.input_independent) return weights["gate"].unsqueeze(1);
  return split_heads(weights.linear(tokens, "gate_proj"), config.gate_heads());
}

/// The epilogue: Y' = Y * act(z), or Y + act(z).
at::Tensor gated(const Config& config, const at::Tensor& y, const at::Tensor& z, Context& context) {
  const at::Tensor gate = activated(config, z);
  if (context.wants("gate")) context.output("gate", gate);
  return (config.additive ? y + gate : y * gate).to(y.scalar_type());
}

struct Queries {
  at::Tensor q;  ///< (B, H, M, Dh)
  at::Tensor z;  ///< (B, H, M, 1 or Dh); undefined when q_proj holds no gate
};

/// The rows of q_proj lie key head by key head: its queries, then its gates.
Queries queries_of(const Config& config, const Weights& weights, const at::Tensor& x) {
  const at::Tensor rows = weights.linear(x, "q_proj");
  if (!config.merged()) return {split_heads(rows, config.heads), {}};
  const int64_t group = config.heads / config.key_heads();
  const auto parts = rows.unflatten(-1, {config.key_heads(), -1})
                         .split_with_sizes({group * config.key_width(), group * config.gate_channels()}, -1);
  return {split_heads(parts[0].flatten(2), config.heads), split_heads(parts[1].flatten(2), config.heads)};
}

struct Turn {
  at::Tensor positions;
  at::Tensor cos, sin;  ///< given tables; undefined: by theta
};

at::Tensor turned(const Config& config, const at::Tensor& t, const Turn& turn) {
  const int64_t width = config.key_width();
  if (!turn.cos.defined()) return rotate(t, turn.positions, config.rope_theta, width, /*interleaved=*/false);
  const at::Tensor cos = table_rows(id, "cos", turn.cos, turn.positions, width);
  return rotate_by(t, cos, table_rows(id, "sin", turn.sin, turn.positions, width), width, /*interleaved=*/false);
}

/// norm, then RoPE, of q or k; `like` tells the type of the products under autocast.
at::Tensor prepared(const Config& config, const Weights& weights, const char* norm, const at::Tensor& t,
                    const Turn& turn, const at::Tensor& like) {
  at::Tensor out = t;
  if (config.qk_norm)
    out = rms_norm(out, weights[std::string(norm) + ".weight"], config.norm_epsilon).to(like.scalar_type());
  return config.rope ? turned(config, out, turn) : out;
}

}  // namespace

at::Tensor GatedAttention::forward(const Config& config, const Weights& weights, const at::Tensor& x,
                                   Context& context) {
  for (const char* name : {"positions", "memory_positions", "cos", "sin"})
    require(config.rope || !context.input(name).defined(), id, "positions and their tables only with rope", name);
  const at::Tensor cos = context.input("cos"), sin = context.input("sin");
  require(cos.defined() == sin.defined(), id, "cos and sin together", "one of them");
  require(config.headwise || config.elementwise || !context.wants("gate"), id, "a gate with the output gate", "none");
  const Order order{config.causal, config.alignment == "bottom_right"};
  const Sides sides = sides_of(id, x, config.width, context);

  auto [q, z] = queries_of(config, weights, sides.x);
  at::Tensor k = split_heads(weights.linear(sides.source, "k_proj"), config.key_heads());
  at::Tensor v = split_heads(weights.linear(sides.source, "v_proj"), config.key_heads());
  if (config.gates("G4")) q = gated(config, q, own_gate(config, weights, sides.x), context);
  if (config.gates("G3")) k = gated(config, k, own_gate(config, weights, sides.source), context);
  if (config.gates("G2")) v = gated(config, v, own_gate(config, weights, sides.source), context);
  Turn of_queries, of_keys;
  if (config.rope) {
    of_queries = {query_positions(id, sides, order, context), cos, sin};
    of_keys = {key_positions(id, sides, context), cos, sin};
  }
  q = prepared(config, weights, "q_norm", q, of_queries, v);
  k = prepared(config, weights, "k_norm", k, of_keys, v);
  if (!sides.cross) {
    k = context.append("k", k);
    v = context.append("v", v);
  }

  AttentionSpec spec;
  AttentionArguments arguments;
  add_visibility(id, sides, order, q, k, context, spec, arguments);
  add_dropout(config.attn_drop, context, spec, arguments);
  at::Tensor o = context.attend(q, k, v, spec, arguments).o;
  if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  if (config.gates("G1")) o = gated(config, o, z.defined() ? z : own_gate(config, weights, sides.x), context);
  at::Tensor y = weights.linear(merge_heads(o), "o_proj");
  if (config.gates("G5")) y = gated(config, y, own_gate(config, weights, sides.x), context);
  return zeroed(y, sides.padded);
}

std::vector<CacheStream> GatedAttention::caches(const Config& config) {
  if (!config.causal) return {};
  return {CacheStream::append("k", {config.key_heads(), config.key_width()}),
          CacheStream::append("v", {config.key_heads(), config.key_width()})};
}

int64_t GatedAttention::Config::gate_heads() const {
  if (shared || position == "G5") return 1;
  return position == "G2" || position == "G3" ? key_heads() : heads;
}

int64_t GatedAttention::Config::gate_channels() const {
  if (headwise) return 1;
  return position == "G5" ? width : key_width();
}

void GatedAttention::declare(const Config& config, Declaration& weights) {
  const int64_t q_rows = config.heads * config.key_width(), k_rows = config.key_heads() * config.key_width();
  const int64_t gate_rows = config.gate_heads() * config.gate_channels();
  weights.linear("q_proj", config.width, q_rows + (config.merged() ? gate_rows : 0), config.qkv_bias);
  weights.linear("k_proj", config.width, k_rows, config.qkv_bias);
  weights.linear("v_proj", config.width, k_rows, config.qkv_bias);
  weights.linear("o_proj", q_rows, config.width, config.qkv_bias);
  if (config.qk_norm) {
    weights.weight("q_norm.weight", {config.key_width()}, Init::ones());
    weights.weight("k_norm.weight", {config.key_width()}, Init::ones());
  }
  if (config.merged() || !(config.headwise || config.elementwise)) return;
  if (config.input_independent)
    weights.weight("gate", {config.gate_heads(), config.gate_channels()}, Init::zeros());
  else
    weights.linear("gate_proj", config.width, gate_rows, config.qkv_bias);
}

REGARD_MECHANISM(GatedAttention)

}  // namespace regard
