// What Landmark refuses, declares and says of itself; landmark.cpp holds what it computes.

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/dropout.h"
#include "regard/nn/sparse/landmark.h"

namespace regard {
namespace {

constexpr const char* id = "landmark";

void require_one_of(const char* name, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    fail(id, std::string(name) + " among " + quoted_list(choices), "'" + value + "'" + suggestion(value, choices));
}

void require_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) fail(id, std::string(name) + " >= " + std::to_string(least), std::to_string(value));
}

}  // namespace

void Landmark::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "heads H, a divisor of width");
  f("bias", bias, "biases of both projections");
  f("mem_freq", mem_freq, "ordinary tokens before each landmark");
  f("scale", scale, "factor of the scores; null: 1 / sqrt(width / heads)");
  f("causal", causal, "always true: a landmark closes the block before it");
  f("rope", rope, "rotary positions on q and k");
  f("rope_theta", rope_theta, "base of the rotary frequencies");
  f("form", form, "auto, mask (any spacing) or flash (two levels of states, regular spacing)");
  f("group_dropout", group_dropout, "dropout of the shares of past blocks in training");
  f("attn_drop", attn_drop, "dropout of the weights in training");
  f("proj_drop", proj_drop, "dropout of the output in training");
  f("topk", topk, "blocks fetched from the cache for each query; null: attention to all tokens");
  f("selection", selection, "whose scores choose blocks: per_token_and_head, max_over_tokens or max_over_heads");
  f("block_rows", block_rows, "query rows a stripe; 0: chosen by size");
  f("parity", parity, "rotary frequencies rounded to float32, as the official code has them");
}

void Landmark::Config::validate() const {
  require_at_least("heads", heads, 1);
  require(width % heads == 0, id, "width to be a multiple of heads",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require(!rope || head_width() % 2 == 0, id, "an even head width with rope", std::to_string(head_width()));
  require_at_least("mem_freq", mem_freq, 1);
  require_at_least("block_rows", block_rows, 0);
  if (topk) require_at_least("topk", *topk, 1);
  require(causal, id, "causal true (a landmark closes the block before it)", "false");
  require(rope_theta > 0, id, "rope_theta > 0", std::to_string(rope_theta));
  require(!scale || std::isfinite(*scale), id, "a finite scale", std::to_string(scale.value_or(0)));
  require_one_of("form", form, {"auto", "mask", "flash"});
  require_one_of("selection", selection, {"per_token_and_head", "max_over_tokens", "max_over_heads"});
  require_probability(id, "group_dropout", group_dropout);
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
  require(form != "flash" || attn_drop == 0, id, "form 'mask' with attn_drop (states hold no weights)", "'flash'");
}

void Landmark::declare(const Config& config, Declaration& weights) {
  weights.linear("c_attn", config.width, 3 * config.width, config.bias, Init::normal(0.02), Init::zeros());
  weights.linear("c_proj", config.width, config.width, config.bias, Init::normal(0.02), Init::zeros());
}

/// Keys before their rotation: fetched blocks take new places. Landmarks are remembered where their spacing may vary.
std::vector<CacheStream> Landmark::caches(const Config& config) {
  std::vector<CacheStream> streams = {CacheStream::append("k", {config.heads, config.head_width()}),
                                      CacheStream::append("v", {config.heads, config.head_width()})};
  if (!config.topk) streams.push_back(CacheStream::append("is_mem", {1}));
  return streams;
}

Info Landmark::info() {
  Info info;
  info.id = id;
  info.family = "sparse";
  info.role = Role::mixer;
  info.title = "A softmax in two levels: landmarks compete, their weight is shared out inside their blocks";
  info.equation = "y = concat_h(sum_{s here} p_s v_s + sum_{past b} p_b sum_{s in b} softmax_b(s) v_s) Wo";
  info.paper = "Mohtashami and Jaggi, 2023, Landmark Attention: Random-Access Infinite Context Length for Transformers";
  info.inputs = {
      {"is_mem", "(B, N) bool: landmarks among the tokens of x; default every (mem_freq + 1)-th"},
      {"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
      {"logits", "(B, H, N, N): logits that go through the softmax for the output `probs`, and nothing else"}};
  info.outputs = {{"attn", "(B, H, M, N): the weights, formed in full"},
                  {"probs", "(B, H, N, N): the two-level softmax of the input `logits`"}};
  info.examples = {R"({"width": 8, "heads": 2, "mem_freq": 3, "block_rows": 3})",
                   R"({"width": 8, "heads": 2, "mem_freq": 2, "form": "mask", "bias": true, "block_rows": 2})",
                   R"({"width": 8, "heads": 4, "mem_freq": 1, "rope": false, "scale": 0.8})"};
  info.golden.config = {{"D", "width"},      {"H", "heads"},          {"B", ""},
                        {"T", ""},           {"landmark_offset", ""}, {"rope_base", "rope_theta"},
                        {"n_embd", "width"}, {"n_head", "heads"}};
  info.golden.fixed = R"({"parity": true})";
  info.golden.inputs = {{"aux.*", ""}};
  info.golden.outputs = {{"y", ""}, {"probs", "probs"}};
  return info;
}

}  // namespace regard
