#include "regard/nn/sparse/moba.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/rotary.h"
#include "regard/nn/shapes.h"
#include "regard/nn/sparse/moba_blocks.h"

namespace regard {
namespace {

/// Whether the call asks for something that only an attention of all pairs has.
bool asks_for_the_map(const Context& context) {
  return context.wants("attn") || !context.edits.empty() ||
         std::any_of(context.wanted.begin(), context.wanted.end(),
                     [](const std::string& name) { return name.starts_with("tap."); });
}

MobaLayout layout_of(const at::Tensor& x, const at::Tensor& k, const at::Tensor& v, int64_t size,
                     const Context& context) {
  const at::Tensor bounds = context.cu_seqlens(), positions = context.positions(x);
  return bounds.defined() ? moba_layout(k, v, positions, context.segments(x), bounds, size)
                          : moba_layout(k, v, positions, size);
}

/// Dense attention; the pairs of other blocks do not exist.
at::Tensor attend_naive(const Moba::Config& config, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const MobaLayout& layout, const at::Tensor& choice, Context& context) {
  AttentionSpec spec;
  spec.scale = config.scale;
  spec.keep = masks::causal();
  AttentionArguments arguments;
  if (!config.full) {
    // Packed tokens have their own columns in the layout; elsewhere the column is the position.
    Expr block = floor_div(key(), Expr(config.chunk_size));
    if (layout.first.defined()) {
      arguments.named_captures["moba_own"] = layout.own();
      block = capture("moba_own", Type::integer, {column()});
    }
    arguments.named_captures["moba_chosen"] = moba_chosen(layout, choice);
    spec.keep = spec.keep & capture("moba_chosen", Type::boolean, {batch(), head(), row(), block});
  }
  const at::Tensor o = context.attend(q, k, v, spec, arguments).o;
  if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  return o;
}

}  // namespace

at::Tensor Moba::forward(const Config& config, const Weights& weights, const at::Tensor& given, Context& context) {
  const at::Tensor padded = context.padding(given);
  // Padded tokens are zeroed before the projections, so that NaN in them reaches no gradient.
  const at::Tensor x = padded.defined() ? given.masked_fill(padded.unsqueeze(2), 0) : given;
  const int64_t rows = config.heads * config.key_width(), key_rows = config.key_heads() * config.key_width();
  const auto parts = at::linear(x, weights["in_proj_weight"], config.qkv_bias ? weights["in_proj_bias"] : at::Tensor())
                         .split_with_sizes({rows, key_rows, key_rows}, -1);
  at::Tensor q = split_heads(parts[0], config.heads), k = split_heads(parts[1], config.key_heads()),
             v = split_heads(parts[2], config.key_heads());
  if (config.rope) {
    const at::Tensor positions = context.positions(x);
    q = rotate(q, positions, config.rope_theta, config.key_width(), config.rope_interleaved);
    k = rotate(k, positions, config.rope_theta, config.key_width(), config.rope_interleaved);
  }
  k = context.append("k", k);
  v = context.append("v", v);

  MobaLayout layout;
  at::Tensor choice;
  if (!config.full) {
    layout = layout_of(x, context.gather(k, 2), context.gather(v, 2), config.chunk_size, context);
    choice = moba_choice(q, layout, config.topk);
    if (context.wants("blocks")) context.output("blocks", choice);
  }
  const bool naive = config.full || config.form == "naive" || asks_for_the_map(context);
  const at::Tensor o = naive ? attend_naive(config, q, k, v, layout, choice, context)
                             : moba_attend(q, layout, choice, config.scale, context.path).o;
  const at::Tensor y = weights.linear(merge_heads(o), "out_proj");
  return padded.defined() ? y.masked_fill(padded.unsqueeze(2), 0) : y;
}

void Moba::declare(const Config& config, Declaration& weights) {
  const int64_t rows = (config.heads + 2 * config.key_heads()) * config.key_width();
  weights.weight("in_proj_weight", {rows, config.width}, Init::xavier_uniform());
  if (config.qkv_bias) weights.weight("in_proj_bias", {rows}, Init::zeros());
  weights.linear("out_proj", config.heads * config.key_width(), config.width, config.out_bias, Init::kaiming_uniform(),
                 Init::zeros());
}

std::vector<CacheStream> Moba::caches(const Config& config) {
  return {CacheStream::append("k", {config.key_heads(), config.key_width()}),
          CacheStream::append("v", {config.key_heads(), config.key_width()})};
}

void Moba::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key heads Hk, a divisor of heads; 0: heads");
  f("head_width", head_width, "width Dh of a head; 0: width / heads");
  f("chunk_size", chunk_size, "tokens of a block");
  f("topk", topk, "blocks that a query attends to, its own counted");
  f("full", full, "attend to every earlier token instead, with the same weights");
  f("form", form, "blocks (only what was chosen is computed) or naive (dense attention under a mask)");
  f("causal", causal, "always true: a query attends to its own block up to itself and to earlier ones");
  f("qkv_bias", qkv_bias, "bias of the in-projections");
  f("out_bias", out_bias, "bias of the output projection");
  f("scale", scale, "factor of the scores; null: head_width^-1/2");
  f("rope", rope, "rotary position embedding of queries and keys");
  f("rope_theta", rope_theta, "base of its frequencies");
  f("rope_interleaved", rope_interleaved, "pairs (2t, 2t + 1) instead of (t, t + head_width / 2)");
}

void Moba::Config::validate() const {
  const auto check = [](bool holds, const std::string& expected, const std::string& found) {
    require(holds, "moba", expected.c_str(), found);
  };
  check(heads > 0 && (head_width > 0 || (head_width == 0 && width % heads == 0)),
        "width to be a multiple of heads, or head_width",
        "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  check(kv_heads >= 0 && heads % key_heads() == 0, "kv_heads to divide the " + std::to_string(heads) + " heads",
        std::to_string(kv_heads));
  check(chunk_size > 0, "chunk_size > 0", std::to_string(chunk_size));
  check(topk > 0, "topk > 0 (a query's own block counts)", std::to_string(topk));
  check(rope_theta > 0, "rope_theta > 0", std::to_string(rope_theta));
  check(form == "blocks" || form == "naive", "form 'blocks' or 'naive'", "'" + form + "'");
  check(causal, "causal true (blocks are chosen among earlier ones)", "false");
  check(!rope || key_width() % 2 == 0, "an even head width with rope", std::to_string(key_width()));
}

Info Moba::info() {
  Info info;
  info.id = "moba";
  info.family = "sparse";
  info.title = "Mixture of block attention: each query chooses key blocks by their mean key";
  info.equation =
      "o_i = sum of softmax(scale <q_i, k_t>) v_t over t <= i in its own and the topk - 1 best earlier blocks";
  info.paper = "Lu et al., 2025, MoBA: Mixture of Block Attention for Long-Context LLMs";
  info.inputs = {{"lengths", "(B) int64: tokens of each row; the rest is padding"}};
  info.outputs = {{"attn", "(B, heads, N, N): weights, 0 in blocks that were not chosen"},
                  {"blocks", "(B, heads, N, min(topk, blocks)) int64: the chosen blocks, -1: none"}};
  info.examples = {R"({"width": 8, "heads": 2, "chunk_size": 2, "topk": 2})",
                   R"({"width": 16, "heads": 4, "kv_heads": 2, "chunk_size": 3, "topk": 2, "rope": true})",
                   R"({"width": 8, "heads": 2, "chunk_size": 1, "topk": 3, "qkv_bias": false, "head_width": 3})",
                   R"({"width": 8, "heads": 2, "chunk_size": 4, "topk": 2, "form": "naive", "scale": 0.3})",
                   R"({"width": 8, "heads": 2, "full": true})"};
  info.golden.excuse = "the case is of the op on packed queries, keys and values";
  return info;
}

REGARD_MECHANISM(Moba)

}  // namespace regard
