#include "regard/nn/dense/multi_query.h"

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/sides.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

constexpr const char* id = "multi-query";

void require_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) fail(id, std::string(name) + " >= " + std::to_string(least), std::to_string(value));
}

}  // namespace

at::Tensor MultiQuery::forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
  const Sides sides = sides_of(id, x, config.source_width(), context);
  const at::Tensor q = split_heads(weights.linear(sides.x, "wq"), config.heads);
  at::Tensor k = split_heads(weights.linear(sides.source, "wk"), config.kv_heads);
  at::Tensor v = split_heads(weights.linear(sides.source, "wv"), config.kv_heads);
  if (!sides.cross) {
    k = context.append("k", k);
    v = context.append("v", v);
  }
  AttentionSpec spec;
  AttentionArguments arguments;
  spec.scale = config.scale;
  add_visibility(id, sides, {config.causal, config.alignment == "bottom_right"}, q, k, context, spec, arguments);
  add_dropout(config.attn_drop, context, spec, arguments);

  const AttentionOutput mixed = context.attend(q, k, v, spec, arguments);
  if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  const at::Tensor y = dropout(weights.linear(merge_heads(mixed.o), "wo"), config.proj_drop, context);
  return zeroed(y, sides.padded);
}

std::vector<CacheStream> MultiQuery::caches(const Config& config) {
  if (!config.causal || config.source_width() != config.width) return {};
  return {CacheStream::append("k", {config.kv_heads, config.key_width()}),
          CacheStream::append("v", {config.kv_heads, config.values_width()})};
}

void MultiQuery::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key and value heads Hk, a divisor of heads; 1: multi-query, heads: multi-head");
  f("head_width", head_width, "width Dh of queries and keys; 0: width / heads");
  f("value_width", value_width, "width Dv of values; 0: head_width");
  f("memory_width", memory_width, "width of memory's tokens; 0: width");
  f("q_bias", q_bias, "bias of the query projection");
  f("kv_bias", kv_bias, "biases of the key and value projections");
  f("out_bias", out_bias, "bias of the output projection");
  f("scale", scale, "factor of the scores; null: head_width^-1/2");
  f("causal", causal, "query i sees keys j <= i");
  f("alignment", alignment, "causal with memory: bottom_right (the last query lies on the last key) or top_left");
  f("attn_drop", attn_drop, "dropout of the weights in training");
  f("proj_drop", proj_drop, "dropout of the output in training");
}

void MultiQuery::Config::validate() const {
  require_at_least("heads", heads, 1);
  require_at_least("kv_heads", kv_heads, 1);
  require_at_least("head_width", head_width, 0);
  require_at_least("value_width", value_width, 0);
  require_at_least("memory_width", memory_width, 0);
  require(heads % kv_heads == 0, id, "heads to be a multiple of kv_heads",
          "heads " + std::to_string(heads) + ", kv_heads " + std::to_string(kv_heads));
  require(head_width > 0 || width % heads == 0, id, "width to be a multiple of heads, or head_width given",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require(!scale || std::isfinite(*scale), id, "a finite scale", std::to_string(scale.value_or(0)));
  require_alignment(id, alignment);
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
}

void MultiQuery::declare(const Config& config, Declaration& weights) {
  weights.linear("wq", config.width, config.heads * config.key_width(), config.q_bias);
  weights.linear("wk", config.source_width(), config.kv_heads * config.key_width(), config.kv_bias);
  weights.linear("wv", config.source_width(), config.kv_heads * config.values_width(), config.kv_bias);
  weights.linear("wo", config.heads * config.values_width(), config.width, config.out_bias);
}

Info MultiQuery::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.title = "Multi-query and grouped-query attention: query heads share key and value heads";
  info.equation = "y = concat_h(softmax(scale q_h k_g^T) v_g) Wo, g = h // (H / Hk)";
  info.paper = "Shazeer, 2019, Fast Transformer Decoding; Ainslie et al., 2023, GQA";
  info.inputs = side_ports();
  info.outputs = {{"attn", "(B, H, M, N): the weights, formed in full"}};
  info.examples = {
      R"({"width": 8, "heads": 4})",
      R"({"width": 12, "heads": 6, "kv_heads": 2, "head_width": 4, "value_width": 3, "kv_bias": true, "out_bias": true})",
      R"({"width": 8, "heads": 2, "kv_heads": 2, "q_bias": true, "scale": 1.0, "causal": true})"};
  info.golden.config = {
      {"d_model", "width"},      {"n_heads", "heads"}, {"n_kv_heads", "kv_heads"}, {"head_dim", "head_width"},
      {"key_dim", "head_width"}, {"bias_q", "q_bias"}, {"bias_kv", "kv_bias"},     {"bias_out", "out_bias"},
      {"dropout", ""},           {"cross", ""}};
  info.golden.fixed = R"({"alignment": "top_left"})";  // a triangle from the first pair
  info.golden.inputs = {{"context", "memory"}};
  info.golden.outputs = {{"out", ""}, {"attn", "attn"}};
  return info;
}

REGARD_MECHANISM(MultiQuery)

}  // namespace regard
