// Options and weights of normalized-attention.

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/dense/normalized_attention.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

using Config = NormalizedAttention::Config;
constexpr const char* id = "normalized-attention";

void require_one_of(const char* name, const std::string& value, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value) == known.end())
    fail(id, std::string(name) + " among " + quoted_list(known), "'" + value + "'" + suggestion(value, known));
}

void linear(Declaration& weights, const std::string& name, int64_t inputs, int64_t outputs) {
  weights.linear(name + ".layer", inputs, outputs, true, Init::truncated_normal(0.02), Init::zeros());
}

void layer_norm(Declaration& weights, const std::string& name, int64_t width) {
  weights.weight(name + ".gamma", {width}, Init::ones());
  weights.weight(name + ".beta", {width}, Init::zeros());
}

}  // namespace

int64_t NormalizedAttention::Config::hidden_width() const {
  if (hidden) return hidden;
  // 12 D^2 + 8 D parameters, those of the projections, mixing and feed-forward of width 4 D, in a feed-forward alone.
  const double d = static_cast<double>(width);
  return pools() ? static_cast<int64_t>(std::lround((12 * d + 8) / (2 * d + 1) * d)) : 4 * width;
}

std::vector<CacheStream> NormalizedAttention::caches(const Config& config) {
  if (!config.causal) return {};
  if (config.variant == "sum") return {CacheStream::append("tokens", {1, config.width})};
  return {CacheStream::append("k", {config.heads, config.key_width()}),
          CacheStream::append("v", {config.heads, config.key_width()})};
}

void NormalizedAttention::declare(const Config& config, Declaration& weights) {
  const int64_t width = config.width, mixed = config.mixed_width(), hidden = config.hidden_width();
  if (!config.pools()) {
    for (const char* name : {"query", "key", "value"}) linear(weights, std::string("attention.") + name, width, mixed);
    if (config.variant == "nap") {
      weights.weight("attention.normalize.gain", {1, config.heads, 1, 1}, Init::ones());
      weights.weight("attention.normalize.bias", {1, config.heads, 1, 1}, Init::zeros());
    }
  }
  if (config.pools() || !config.bert_layer_norm) layer_norm(weights, "attention_layer_norm", mixed);
  if (!config.pools()) {
    linear(weights, "mixing_layer", mixed, width);
    layer_norm(weights, "mixing_layer_norm", width);
  }
  linear(weights, "feedforward", width, hidden);
  if (!config.bert_layer_norm) layer_norm(weights, "feedforward_layer_norm", hidden);
  linear(weights, "feedforward2", hidden, width);
  layer_norm(weights, "feedforward2_layer_norm", width);
}

void NormalizedAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "heads H");
  f("head_width", head_width, "width Dh of a head; 0: width / heads");
  f("hidden", hidden, "feed-forward width; 0: 4 width, for sum and max as many parameters as nap has");
  f("variant", variant, "nap, non (no normalizer), softmax (MTE), sum, max");
  f("scale", scale, "factor of the scores; null: 1 for nap, head_width^-1/2 for non and softmax");
  f("epsilon", epsilon, "of the standard deviation");
  f("epsilon_place", epsilon_place, "outside the root, inside, or inside_count (of the sums, over n + epsilon)");
  f("norm_epsilon", norm_epsilon, "epsilon of the LayerNorms; null: epsilon");
  f("gelu", gelu, "tanh (TensorFlow code) or erf (PyTorch code)");
  f("attention_gelu", attention_gelu, "GELU before mixing");
  f("bert_layer_norm", bert_layer_norm, "the post-norm block without inner LayerNorms");
  f("causal", causal, "query i sees keys j <= i");
  f("alignment", alignment, "causal with memory: bottom_right (the last query lies on the last key) or top_left");
  f("attn_drop", attn_drop, "dropout of the weights in training");
}

void NormalizedAttention::Config::validate() const {
  require(heads >= 1, id, "heads >= 1", std::to_string(heads));
  for (const auto& [name, value] : {std::pair{"head_width", head_width}, std::pair{"hidden", hidden}})
    if (value < 0) fail(id, std::string(name) + " >= 0", std::to_string(value));
  require_one_of("variant", variant, {"nap", "non", "softmax", "sum", "max"});
  require_one_of("epsilon_place", epsilon_place, {"outside", "inside", "inside_count"});
  require_one_of("gelu", gelu, {"tanh", "erf"});
  require(pools() || head_width > 0 || width % heads == 0, id, "width to be a multiple of heads, or head_width given",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require(!scale || std::isfinite(*scale), id, "a finite scale", std::to_string(scale.value_or(0)));
  require(!scale || !pools(), id, "a scale only with a variant that has scores", "'" + variant + "'");
  require(std::isfinite(epsilon) && epsilon >= 0, id, "epsilon >= 0", std::to_string(epsilon));
  require(norm_epsilon.value_or(epsilon) > 0, id, "norm_epsilon > 0, or epsilon > 0",
          std::to_string(norm_epsilon.value_or(epsilon)));
  require(!causal || variant != "max", id, "a variant that can be causal", "'max', one maximum for all queries");
  require_alignment(id, alignment);
  require_probability(id, "attn_drop", attn_drop);
}

Info NormalizedAttention::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.title =
      "Normalized attention pooling: scores standardized over the keys, in a block with mixing and feed-forward";
  info.equation =
      "w_ij = gain (z_ij - mean_i) / (sqrt(var_i) + eps) + bias, y = x + LN(mixing(GELU(LN(w v)))), y + FFN(y)";
  info.paper = "Richter and Wattenhofer, 2020, Normalized Attention Without Probability Cage";
  info.inputs = side_ports();
  info.outputs = {{"attn", "(B, H, M, N): the weights, bias included, formed in full"},
                  {"attention", "(B, M, H Dh): o, the heads side by side before the block's norms"}};
  info.examples = {
      R"({"width": 8, "heads": 2, "hidden": 12})",
      R"({"width": 8, "heads": 2, "hidden": 6, "causal": true, "epsilon": 0.01, "epsilon_place": "inside", "gelu": "erf"})",
      R"({"width": 8, "heads": 1, "head_width": 6, "hidden": 6, "epsilon_place": "inside_count", "bert_layer_norm": true, "causal": true})",
      R"({"width": 8, "heads": 2, "hidden": 6, "variant": "non", "attention_gelu": false, "causal": true})",
      R"({"width": 8, "heads": 2, "hidden": 6, "variant": "softmax", "causal": true})",
      R"({"width": 8, "hidden": 6, "variant": "sum"})",
      R"({"width": 8, "hidden": 6, "variant": "max", "norm_epsilon": 0.01})"};
  info.golden.config = {
      {"vec_size", "width"}, {"num_heads", "heads"}, {"head_size", "head_width"}, {"variance_epsilon", "epsilon"}};
  info.golden.fixed = R"({"epsilon_place": "inside", "gelu": "erf"})";  // the PyTorch code's
  info.golden.outputs = {{"out", ""}, {"attention", "attention"}};
  return info;
}

}  // namespace regard
