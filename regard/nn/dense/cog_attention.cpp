#include "regard/nn/dense/cog_attention.h"

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/rotary.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = CogAttention::Config;
constexpr const char* id = "cog-attention";

struct Projected {
  at::Tensor q, k, v;  ///< (B, H, L, Dh)
};

Projected project(const Config& config, const Weights& weights, const Sides& sides) {
  const auto heads = [&](const at::Tensor& t) { return split_heads(t, config.heads); };
  if (config.form == "lm")
    return {heads(at::matmul(sides.x, weights["qw"])), heads(at::matmul(sides.source, weights["kw"])),
            heads(at::matmul(sides.source, weights["vw"]))};
  if (!sides.cross) {
    const auto parts = weights.linear(sides.x, "qkv").chunk(3, -1);
    return {heads(parts[0]), heads(parts[1]), heads(parts[2])};
  }
  const int64_t rows = config.heads * config.key_width();
  const auto bias = [&](int64_t begin, int64_t end) {
    return config.qkv_bias ? weights["qkv.bias"].slice(0, begin, end) : at::Tensor();
  };
  const at::Tensor& all = weights["qkv.weight"];
  const auto parts = at::linear(sides.source, all.slice(0, rows), bias(rows, 3 * rows)).chunk(2, -1);
  return {heads(at::linear(sides.x, all.slice(0, 0, rows), bias(0, rows))), heads(parts[0]), heads(parts[1])};
}

/// RoPE over interleaved pairs, by the call's tables or by theta.
void turn(const Config& config, const Sides& sides, const Order& order, const Context& context, Projected& parts) {
  const at::Tensor cos = context.input("freqs_cos"), sin = context.input("freqs_sin");
  require(cos.defined() == sin.defined(), id, "freqs_cos and freqs_sin together", "one of them");
  const auto turned = [&](const at::Tensor& t, const at::Tensor& positions) {
    const int64_t width = config.key_width();
    if (!cos.defined()) return rotate(t, positions, config.rope_theta, width, /*interleaved=*/true);
    const at::Tensor rows = table_rows(id, "freqs_cos", cos, positions, width);
    return rotate_by(t, rows, table_rows(id, "freqs_sin", sin, positions, width), width, /*interleaved=*/true);
  };
  parts.q = turned(parts.q, query_positions(id, sides, order, context));
  parts.k = turned(parts.k, key_positions(id, sides, context));
}

}  // namespace

at::Tensor CogAttention::forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
  for (const char* name : {"positions", "memory_positions", "freqs_cos", "freqs_sin"})
    require(config.turns() || !context.input(name).defined(), id, "positions and their tables only with rope", name);
  const Order order{config.causal, config.alignment == "bottom_right"};
  const Sides sides = sides_of(id, x, config.width, context);
  Projected parts = project(config, weights, sides);
  if (config.turns()) turn(config, sides, order, context, parts);
  if (!sides.cross) {
    parts.k = context.append("k", parts.k);
    parts.v = context.append("v", parts.v);
  }
  AttentionSpec spec;
  AttentionArguments arguments;
  spec.scale = config.scale;
  if (config.attention == "cog") {
    spec.normalizer.kind = Normalizer::Kind::signed_softmax;
    spec.normalizer.epsilon = config.epsilon;
  }
  add_visibility(id, sides, order, parts.q, parts.k, context, spec, arguments);
  add_dropout(config.attn_drop, context, spec, arguments);

  const AttentionOutput mixed = context.attend(parts.q, parts.k, parts.v, spec, arguments);
  if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  const at::Tensor o = merge_heads(mixed.o);
  const at::Tensor y = config.form == "lm" ? at::matmul(o, weights["ow"]) : weights.linear(o, "proj");
  return zeroed(dropout(y, config.proj_drop, context), sides.padded);
}

std::vector<CacheStream> CogAttention::caches(const Config& config) {
  if (!config.causal) return {};
  return {CacheStream::append("k", {config.heads, config.key_width()}),
          CacheStream::append("v", {config.heads, config.key_width()})};
}

void CogAttention::declare(const Config& config, Declaration& weights) {
  const int64_t inner = config.heads * config.key_width();
  if (config.form == "image") {
    weights.linear("qkv", config.width, 3 * inner, config.qkv_bias);
    weights.linear("proj", inner, config.width);
    return;
  }
  // torch.nn.Linear's: much smaller weights would put every score where its sign jumps.
  const auto linear = [](int64_t inputs) { return Init::uniform(1 / std::sqrt(static_cast<double>(inputs))); };
  for (const char* name : {"qw", "kw", "vw"}) weights.weight(name, {config.width, inner}, linear(config.width));
  weights.weight("ow", {inner, config.width}, linear(inner));
}

REGARD_MECHANISM(CogAttention)

}  // namespace regard
