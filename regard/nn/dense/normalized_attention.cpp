#include "regard/nn/dense/normalized_attention.h"

#include <ATen/OpMathType.h>

#include <limits>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = NormalizedAttention::Config;
constexpr const char* id = "normalized-attention";

/// One call: who sees whom is the same in each of its attentions.
struct Call {
  const Config& config;
  const Weights& weights;
  const Sides& sides;
  Context& context;
  AttentionArguments arguments = {};
  AttentionSpec visible = {};  ///< keep, positions and dropout

  void see(const at::Tensor& q, const at::Tensor& k) {
    const Order order{config.causal, config.alignment == "bottom_right"};
    add_visibility(id, sides, order, q, k, context, visible, arguments);
  }
};

/// sum of the values that each query sees, times a factor a head: the spec whose weights are all 1.
AttentionSpec summing(const AttentionSpec& visible) {
  AttentionSpec spec = visible;
  spec.score = Expr(1.0);
  spec.normalizer.kind = Normalizer::Kind::identity;
  return spec;
}

/// How many keys each query sees, at least 1: (B, H, M, 1) float32, or float64.
at::Tensor visible_keys(Call& call, const at::Tensor& q, const at::Tensor& k) {
  const auto type = at::toOpMathType(q.scalar_type());
  const auto column = [&](const at::Tensor& t) { return at::zeros_like(t.slice(-1, 0, 1), t.options().dtype(type)); };
  AttentionSpec spec = summing(call.visible);
  spec.dropout = 0;
  AttentionArguments arguments = call.arguments;
  arguments.seed = at::Tensor();
  return call.context.companion(column(q), column(k), column(k) + 1, spec, arguments).o.clamp_min(1);
}

/// The weights of the attention that just ran, added to the output "attn".
void show(const Call& call) {
  if (!call.context.wants("attn")) return;
  const at::Tensor weights = attention_weights(call.context.attended());
  const auto before = call.context.outputs.find("attn");
  call.context.output("attn", before == call.context.outputs.end() ? weights : before->second + weights);
}

/// nap: gain * z-score, and the bias as a second state, the sum of the visible values.
at::Tensor standardized(Call& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto of_head = [&](const char* name) {
    call.arguments.named_captures[name] = call.weights[std::string("attention.normalize.") + name].flatten();
    return capture(name, Type::real, {head()});
  };
  AttentionSpec spec = call.visible;
  spec.normalizer.kind = Normalizer::Kind::z_score;
  spec.normalizer.epsilon = call.config.epsilon;
  spec.normalizer.epsilon_place = epsilon_place_from_name(call.config.epsilon_place);
  spec.scale = call.config.scale.value_or(1);
  spec.weight = of_head("gain");
  AttentionSpec shift = summing(call.visible);
  shift.weight = of_head("bias");
  const at::Tensor o = call.context.attend(q, k, v, spec, call.arguments).o;
  show(call);
  const at::Tensor sums = call.context.companion(q, k, v, shift, call.arguments).o;  // one seed drops the same pairs
  show(call);
  return o + sums;
}

at::Tensor attended(Call& call) {
  const Config& config = call.config;
  const auto project = [&](const at::Tensor& t, const char* name) {
    return split_heads(call.weights.linear(t, std::string("attention.") + name + ".layer"), config.heads);
  };
  const at::Tensor q = project(call.sides.x, "query");
  at::Tensor k = project(call.sides.source, "key"), v = project(call.sides.source, "value");
  if (!call.sides.cross) {
    k = call.context.append("k", k);
    v = call.context.append("v", v);
  }
  call.see(q, k);
  add_dropout(config.attn_drop, call.context, call.visible, call.arguments);
  if (config.variant == "nap") return merge_heads(standardized(call, q, k, v));
  AttentionSpec spec = call.visible;
  spec.scale = config.scale;
  if (config.variant == "non") spec.normalizer.kind = Normalizer::Kind::identity;
  const at::Tensor o = call.context.attend(q, k, v, spec, call.arguments).o;
  if (config.variant == "softmax") {
    show(call);
    return merge_heads(o);
  }
  at::Tensor map;
  if (call.context.wants("attn")) map = attention_weights(call.context.attended());
  const at::Tensor root = at::sqrt(visible_keys(call, q, k));
  if (map.defined()) call.context.output("attn", map / root);
  return merge_heads((o / root).to(o.scalar_type()));
}

/// The sum of the visible tokens: an attention of one head whose weights are all 1.
at::Tensor summed(Call& call) {
  const auto column = [](const at::Tensor& t) { return at::zeros_like(t.slice(-1, 0, 1)); };
  at::Tensor tokens = call.sides.source.unsqueeze(1);
  if (!call.sides.cross) tokens = call.context.append("tokens", tokens);
  const at::Tensor q = column(call.sides.x.unsqueeze(1)), k = column(tokens);
  call.see(q, k);
  const at::Tensor o = call.context.attend(q, k, tokens, summing(call.visible), call.arguments).o;
  show(call);
  return o.squeeze(1);
}

/// Their maximum, channel by channel, the same for every query; 0 where no token is visible.
at::Tensor greatest(Call& call) {
  constexpr double least = -std::numeric_limits<double>::infinity();
  const Sides& sides = call.sides;
  at::Tensor tokens = sides.source;
  const at::Tensor padded = call.context.padding(tokens, sides.key_lengths);
  for (const at::Tensor& hidden : {padded, sides.key_hidden})
    if (hidden.defined()) tokens = tokens.masked_fill(hidden.unsqueeze(2), least);
  const at::Tensor none = at::full_like(sides.x.sum(1, /*keepdim=*/true), least);  // (B, 1, D), also without tokens
  const at::Tensor top = call.context.greatest(std::get<0>(at::cat({tokens, none}, 1).max(1, /*keepdim=*/true)));
  return at::where(top.eq(least), at::zeros({}, top.options()), top).expand_as(sides.x);
}

at::Tensor layer_norm(const Call& call, const at::Tensor& t, const std::string& name) {
  const at::Tensor& gamma = call.weights[name + ".gamma"];
  const double epsilon = call.config.norm_epsilon.value_or(call.config.epsilon);
  return at::layer_norm_symint(t, gamma.sym_sizes(), gamma, call.weights[name + ".beta"], epsilon);
}

/// The block around o (B, M, H Dh): norms and GELUs, mixing, feed-forward, residuals.
at::Tensor block(const Call& call, const at::Tensor& o) {
  const Config& config = call.config;
  const at::Tensor& x = call.sides.x;
  const bool bert = config.bert_layer_norm;
  const auto gelu = [&](const at::Tensor& t) { return at::gelu(t, config.gelu == "erf" ? "none" : "tanh"); };
  at::Tensor h = bert ? o : layer_norm(call, o, "attention_layer_norm");
  std::string last = "attention_layer_norm";
  if (!config.pools()) {
    h = call.weights.linear(config.attention_gelu ? gelu(h) : h, "mixing_layer.layer");
    last = "mixing_layer_norm";
    if (!bert) h = layer_norm(call, h, last);
  }
  const at::Tensor y = bert ? layer_norm(call, x + h, last) : x + h;
  at::Tensor f = call.weights.linear(y, "feedforward.layer");
  if (!bert) f = layer_norm(call, f, "feedforward_layer_norm");
  f = call.weights.linear(gelu(f), "feedforward2.layer");
  return bert ? layer_norm(call, y + f, "feedforward2_layer_norm") : y + layer_norm(call, f, "feedforward2_layer_norm");
}

}  // namespace

at::Tensor NormalizedAttention::forward(const Config& config, const Weights& weights, const at::Tensor& x,
                                        Context& context) {
  if (config.variant == "max") {
    require(!context.input("hidden").defined(), id, "no hidden with variant 'max', one maximum for all queries",
            "hidden");
    require(!context.wants("attn"), id, "a variant with weights with the output attn", "'max'");
  }
  const Sides sides = sides_of(id, x, config.width, context);
  Call call{config, weights, sides, context};
  const at::Tensor o = config.variant == "sum"   ? summed(call)
                       : config.variant == "max" ? greatest(call)
                                                 : attended(call);
  if (context.wants("attention")) context.output("attention", o);
  return zeroed(block(call, o), sides.padded);
}

REGARD_MECHANISM(NormalizedAttention)

}  // namespace regard
