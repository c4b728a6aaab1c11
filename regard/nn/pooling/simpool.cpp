#include "regard/nn/pooling/simpool.h"

#include <ATen/OpMathType.h>

#include <cmath>
#include <limits>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/pooling/tokens.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

constexpr double shift_epsilon = 1e-6;  // keeps the base of the power positive

/// z - m + 1e-6, the base of the power: (B, N, D), positive. Padding counts as 1.
at::Tensor shifted(const PoolTokens& tokens, const at::Tensor& z, bool over_batch) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  at::Tensor candidates = z;
  if (tokens.padded.defined()) candidates = z.masked_fill(tokens.padded.unsqueeze(2), infinity);
  const at::Tensor least = over_batch ? candidates.amin({0, 1, 2}, /*keepdim=*/true) : candidates.amin({1, 2}, true);
  // Rows without tokens have no minimum; they are padding throughout.
  const at::Tensor base = z - least + shift_epsilon;
  return tokens.padded.defined() ? base.masked_fill(tokens.padded.unsqueeze(2), 1) : base;
}

/// The keys of each head, so that <q, k> is <Wq u, Wk z_n> of that head.
///
/// <q, Wk z> = <Wk^T q, z>: folding the key projection into the query costs D^2 a sample instead of a token. With a
/// bias the keys are formed as written: the softmax forgets the bias, but its gradient should exist.
struct QueriesAndKeys {
  at::Tensor q, k;  ///< (B, heads, 1, E) (B, heads, N, E)
};
QueriesAndKeys project(const SimPool::Config& config, const Weights& weights, const at::Tensor& u,
                       const at::Tensor& z) {
  const at::Tensor q = weights.linear(u, "wq").unflatten(-1, {config.heads, -1});
  if (config.qkv_bias) return {q.unsqueeze(2), split_heads(weights.linear(z, "wk"), config.heads)};
  const at::Tensor folded = at::einsum("bhe,hed->bhd", {q, weights["wk.weight"].unflatten(0, {config.heads, -1})});
  return {folded.unsqueeze(2), z.unsqueeze(1).expand({-1, config.heads, -1, -1})};
}

}  // namespace

void SimPool::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "attention heads; the width is cut into as many blocks");
  f("qkv_bias", qkv_bias, "biases on wq and wk");
  f("qk_scale", qk_scale, "factor of the scores; null: (width / heads)^-1/2");
  f("gamma", gamma, "exponent of the power mean; null: an ordinary mean");
  f("use_beta", use_beta, "a learned scalar added to the power mean");
  f("parity", parity, "the minimum over the whole batch, as the official code: couples the batch");
  f("include_prefix", include_prefix, "pool the prefix tokens (class, registers) too");
  f("norm_epsilon", norm_epsilon, "epsilon of the LayerNorm");
}

void SimPool::Config::validate() const {
  require(heads > 0 && width % heads == 0, "simpool", "width to be a multiple of heads",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  if (gamma) require(*gamma > 0, "simpool", "gamma > 0", std::to_string(*gamma));
  if (qk_scale) require(std::isfinite(*qk_scale), "simpool", "a finite qk_scale", std::to_string(*qk_scale));
  // The official code makes beta even where nothing reads it.
  require(!use_beta || gamma || parity, "simpool", "gamma with use_beta (beta is added to the power mean)",
          "gamma null");
  require(norm_epsilon > 0, "simpool", "norm_epsilon > 0", std::to_string(norm_epsilon));
}

Info SimPool::info() {
  Info info;
  info.id = "simpool";
  info.family = "pooling";
  info.role = Role::pool;
  info.title = "Attention from the mean of the tokens, under a power mean";
  info.equation = "y = (sum_n a_n (LN(x_n) - min + 1e-6)^gamma)^(1/gamma), a = softmax_n <Wq mean(x), Wk LN(x_n)>";
  info.paper = "Psomas et al., 2023, Keep It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?";
  info.inputs = {{"lengths", "(B) int64: tokens of each row, prefix included; the rest is padding"}};
  info.outputs = {{"attn", "(B, heads, 1, N): attention over the pooled tokens"}};
  info.takes_maps = true;
  info.examples = {R"({"width": 8})", R"({"width": 12, "heads": 3, "qkv_bias": true})",
                   R"({"width": 8, "heads": 2, "gamma": 1.25, "use_beta": true})"};
  info.golden.config = {{"dim", "width"}, {"num_heads", "heads"}, {"layout", ""}};
  info.golden.fixed = R"({"parity": true})";
  info.golden.outputs = {{"y", ""}, {"attn", "attn"}};
  return info;
}

void SimPool::declare(const Config& config, Declaration& weights) {
  weights.layer_norm("norm_patches", config.width);
  weights.linear("wq", config.width, config.width, config.qkv_bias);
  weights.linear("wk", config.width, config.width, config.qkv_bias);
  if (config.use_beta) weights.weight("beta", {1}, Init::zeros());
}

at::Tensor SimPool::forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
  context.whole_only("simpool", "minima and powers over all tokens");
  const PoolTokens tokens("simpool", x, context, config.include_prefix);
  const at::Tensor u = tokens.mean(tokens.x);
  const at::Tensor normalized = weights.layer_norm(tokens.x, "norm_patches", config.norm_epsilon);
  const auto [q, k] = project(config, weights, u, normalized);

  // Sums and powers in float32 at least: (z - m + 1e-6)^gamma leaves the range of half types.
  const at::ScalarType type = at::toOpMathType(normalized.scalar_type());
  const at::Tensor z = normalized.to(type);
  at::Tensor values = z;
  if (config.gamma) values = shifted(tokens, z, config.parity).pow(*config.gamma);

  AttentionSpec spec;
  spec.scale = config.qk_scale.value_or(1 / std::sqrt(static_cast<double>(config.width / config.heads)));
  AttentionArguments arguments;
  arguments.path = context.path;
  if (tokens.lengths.defined()) {
    spec.keep = masks::lengths("lengths");
    arguments.captures = {tokens.lengths};
  }
  if (context.wants("attn")) context.output("attn", attention_weights(q.to(type), k.to(type), spec, arguments));
  at::Tensor y = attention(q.to(type), k.to(type), split_heads(values, config.heads), spec, arguments).o;
  y = merge_heads(y).squeeze(1);
  if (config.gamma) {
    // A row without tokens sums to 0, whose root has no finite gradient.
    if (tokens.empty.defined()) y = y.masked_fill(tokens.empty.unsqueeze(1), 1);
    y = y.pow(1 / *config.gamma);
    if (config.use_beta) y = y + weights["beta"].to(type);
  }
  return tokens.finish(y).to(x.scalar_type());
}

REGARD_MECHANISM(SimPool)

}  // namespace regard
