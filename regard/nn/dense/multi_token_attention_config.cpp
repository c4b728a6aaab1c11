// What MultiTokenAttention refuses, declares and says of itself; multi_token_attention.cpp holds what it computes.

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/dense/multi_token_attention.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

using Config = MultiTokenAttention::Config;
constexpr const char* id = "multi-token-attention";

void require_one_of(const char* name, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    fail(id, std::string(name) + " among " + quoted_list(choices), "'" + value + "'" + suggestion(value, choices));
}

void require_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) fail(id, std::string(name) + " >= " + std::to_string(least), std::to_string(value));
}

std::string text(const std::optional<int64_t>& value) { return value ? std::to_string(*value) : "null"; }

void check_kernel(const Config& c, const std::string& prefix, const std::optional<int64_t>& queries,
                  const std::optional<int64_t>& keys) {
  const std::string q = prefix + "query_kernel_size", k = prefix + "key_kernel_size";
  require(queries.has_value() == keys.has_value(), id, (q + " and " + k + " both given or both null").c_str(),
          text(queries) + " and " + text(keys));
  if (!queries) return;
  require_at_least(q.c_str(), *queries, 1);
  require_at_least(k.c_str(), *keys, 1);
  require(c.pad_key != "both" || *keys % 2 == 1, id, ("an odd " + k + " with pad_key 'both'").c_str(), text(keys));
}

/// The one kernel that the initialization repeats for all heads: 1 at [last query, center key] or on the diagonal that
/// ends there.
std::vector<double> kernel_entries(const std::string& method, int64_t queries, int64_t keys) {
  std::vector<double> entries(static_cast<size_t>(queries * keys), 0.0);
  const int64_t center = method == "identity" ? keys / 2 : (keys + 1) / 2 - 1;
  for (int64_t back = 0; back < (method == "identity" ? 1 : queries); ++back)
    if (center - back >= 0) entries[static_cast<size_t>((queries - 1 - back) * keys + center - back)] = 1;
  return entries;
}

Init kernel_init(const std::string& method, int64_t queries, int64_t keys) {
  if (method == "uniform") return Init::uniform(1);
  if (method == "const") return Init::constant(0.3);
  return Init::repeated(kernel_entries(method, queries, keys));
}

Init identity(int64_t size) {
  std::vector<double> entries(static_cast<size_t>(size * size), 0.0);
  for (int64_t i = 0; i < size; ++i) entries[static_cast<size_t>(i * size + i)] = 1;
  return Init::repeated(std::move(entries));
}

}  // namespace

void MultiTokenAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key heads Hk, a divisor of heads; 0: heads");
  f("head_width", head_width, "width Dh of queries, keys and values; 0: width / heads");
  f("scale", scale, "factor of the scores; null: 1 / sqrt(head_width)");
  f("causal", causal, "query i sees keys j <= i");
  f("rope", rope, "rotary positions on q and k");
  f("rope_theta", rope_theta, "base of the rotary frequencies");
  f("rope_interleaved", rope_interleaved, "rotary pairs (2t, 2t + 1); else (t, t + Dh / 2)");
  f("query_kernel_size", query_kernel_size, "queries that the kernel before the softmax spans; null: no kernel");
  f("key_kernel_size", key_kernel_size, "keys that it spans");
  f("after_sm_query_kernel_size", after_sm_query_kernel_size,
    "queries of the kernel after the softmax; null: no kernel");
  f("after_sm_key_kernel_size", after_sm_key_kernel_size, "keys that it spans");
  f("pad_key", pad_key, "where the kernels' keys lie: both, left or right");
  f("pre_sm_linear_head", pre_sm_linear_head, "linear mixing of heads before the softmax");
  f("head_kernel_size", head_kernel_size, "heads mixed with each other after the softmax; 0: all; null: none");
  f("post_sm_linear_head", post_sm_linear_head,
    "linear mixing of all heads after the softmax, in place of head_kernel_size");
  f("group_norm", group_norm, "RMSNorm of each head's output");
  f("norm_epsilon", norm_epsilon, "epsilon of the RMSNorm");
  f("layer_norm_rescale", layer_norm_rescale, "the norm times 1 - lambda_init");
  f("layer_id", layer_id, "the layer, counted from 0, for lambda_init");
  f("lambda_init", lambda_init, "null: 0.8 - 0.6 exp(-0.3 layer_id)");
  f("add_gating", add_gating, "gate of each head's output by itself");
  f("gate_1d", gate_1d, "one gate a head; else one a channel");
  f("init_method", init_method, "initialization of both kernels: identity, uniform, const or diagonal");
  f("depth_factor", depth_factor, "divides the standard deviation that wo and gate start with");
  f("attn_drop", attn_drop, "dropout of the weights in training");
  f("block_rows", block_rows, "query rows a stripe; 0: chosen by size");
  f("parity", parity, "a second softmax where nothing follows the first, as the official code has it");
}

void MultiTokenAttention::Config::validate() const {
  require_at_least("heads", heads, 1);
  for (const auto& [name, value] : {std::pair{"kv_heads", kv_heads},
                                    {"head_width", head_width},
                                    {"layer_id", layer_id},
                                    {"block_rows", block_rows},
                                    {"head_kernel_size", head_kernel_size.value_or(0)}})
    require_at_least(name, value, 0);
  require(head_width > 0 || width % heads == 0, id, "width to be a multiple of heads, or head_width given",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require(heads % key_heads() == 0, id, "heads to be a multiple of kv_heads",
          "heads " + std::to_string(heads) + ", kv_heads " + std::to_string(kv_heads));
  require(heads % mixed_heads() == 0, id, "heads to be a multiple of head_kernel_size",
          "heads " + std::to_string(heads) + ", head_kernel_size " + text(head_kernel_size));
  require(!rope || key_width() % 2 == 0, id, "an even head width with rope", std::to_string(key_width()));
  require(rope_theta > 0, id, "rope_theta > 0", std::to_string(rope_theta));
  require_one_of("pad_key", pad_key, {"both", "left", "right"});
  require_one_of("init_method", init_method, {"identity", "uniform", "const", "diagonal"});
  check_kernel(*this, "", query_kernel_size, key_kernel_size);
  check_kernel(*this, "after_sm_", after_sm_query_kernel_size, after_sm_key_kernel_size);
  require(!post_sm_linear_head || !head_kernel_size, id, "head_kernel_size null with post_sm_linear_head",
          text(head_kernel_size));
  require(!layer_norm_rescale || group_norm, id, "group_norm with layer_norm_rescale", "group_norm false");
  require(!scale || std::isfinite(*scale), id, "a finite scale", std::to_string(scale.value_or(0)));
  require(norm_epsilon > 0, id, "norm_epsilon > 0", std::to_string(norm_epsilon));
  require(depth_factor > 0, id, "depth_factor > 0", std::to_string(depth_factor));
  require_probability(id, "attn_drop", attn_drop);
}

void MultiTokenAttention::declare(const Config& c, Declaration& weights) {
  const double std = 1 / std::sqrt(static_cast<double>(c.width));
  const auto projection = [&](const char* name, int64_t inputs, int64_t outputs, double own, bool bias = false) {
    weights.linear(name, inputs, outputs, bias, Init::truncated_normal(own, 3 * own), Init::zeros());
  };
  const int64_t q_rows = c.heads * c.key_width(), k_rows = c.key_heads() * c.key_width();
  projection("wq", c.width, q_rows, std);
  projection("wk", c.width, k_rows, std);
  projection("wv", c.width, k_rows, std);
  projection("wo", q_rows, c.width, std / c.depth_factor);
  const auto kernel = [&](const char* name, const std::optional<int64_t>& queries, const std::optional<int64_t>& keys) {
    if (queries) weights.weight(name, {c.heads, 1, *queries, *keys}, kernel_init(c.init_method, *queries, *keys));
  };
  kernel("mta_kernel", c.query_kernel_size, c.key_kernel_size);
  if (c.pre_sm_linear_head) weights.weight("wpsm.weight", {c.heads, c.heads}, identity(c.heads));
  kernel("mta_kernel_after_sm", c.after_sm_query_kernel_size, c.after_sm_key_kernel_size);
  const int64_t group = c.mixed_heads();
  if (c.head_kernel_size) weights.weight("head_kernel", {c.heads / group, group, group}, identity(group));
  if (c.post_sm_linear_head) weights.weight("wposm.weight", {c.heads, c.heads}, identity(c.heads));
  if (c.group_norm) weights.weight("subln.weight", {c.key_width()}, Init::ones());
  if (c.add_gating) projection("gate", c.key_width(), c.gate_1d ? 1 : c.key_width(), std / c.depth_factor, true);
}

Info MultiTokenAttention::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.role = Role::mixer;
  info.title = "Score maps filtered over neighboring queries, keys and heads";
  info.equation = "y = concat_h(gate(norm(mix(K2 * softmax(W (K * scale q k^T))) v))) Wo";
  info.paper = "Golovneva et al., 2025, Multi-Token Attention";
  info.inputs = {{"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
                 {"memory", "(B, N, D): the tokens that keys and values are made of (not causal); default x"},
                 {"memory_lengths", "(B) int64: tokens of each row of memory"},
                 {"hidden", "bool, broadcast to (B, H, M, N), e.g. (M, N): true = NOT attended, 0 in the filters"},
                 {"positions", "(M) or (B, M): positions of x for RoPE; default 0, 1, ..."},
                 {"memory_positions", "(N) or (B, N): positions of memory for RoPE; default 0, 1, ..."}};
  info.outputs = {{"attn", "(B, H, M, N): the weights A', formed in full"}};
  info.examples = {
      R"({"width": 8, "heads": 2, "query_kernel_size": 3, "key_kernel_size": 5, "after_sm_query_kernel_size": 2, "after_sm_key_kernel_size": 3, "block_rows": 3})",
      R"({"width": 8, "heads": 4, "kv_heads": 2, "rope": false, "causal": false, "pad_key": "left", "query_kernel_size": 2, "key_kernel_size": 4, "after_sm_query_kernel_size": null, "after_sm_key_kernel_size": null, "head_kernel_size": 2, "gate_1d": false, "layer_norm_rescale": true, "layer_id": 3})",
      R"({"width": 8, "heads": 2, "head_width": 6, "pad_key": "right", "query_kernel_size": null, "key_kernel_size": null, "after_sm_query_kernel_size": 3, "after_sm_key_kernel_size": 2, "pre_sm_linear_head": false, "head_kernel_size": null, "post_sm_linear_head": true, "group_norm": false, "block_rows": 2})",
      R"({"width": 8, "heads": 2, "after_sm_query_kernel_size": null, "after_sm_key_kernel_size": null, "query_kernel_size": 2, "key_kernel_size": 3, "head_kernel_size": null, "add_gating": false, "parity": true})"};
  info.golden.config = {{"dim", "width"},           {"head_dim", "head_width"},   {"n_heads", "heads"},
                        {"n_kv_heads", "kv_heads"}, {"norm_eps", "norm_epsilon"}, {"dropout", "attn_drop"},
                        {"max_seq_len", ""},        {"cache_attention_maps", ""}, {"mta.use_mta", ""},
                        {"mta.mta_layers", ""},     {"mta.curse_norm", ""}};
  for (const char* same :
       {"query_kernel_size", "key_kernel_size", "after_sm_query_kernel_size", "after_sm_key_kernel_size", "pad_key",
        "pre_sm_linear_head", "head_kernel_size", "post_sm_linear_head", "group_norm", "layer_norm_rescale",
        "add_gating", "gate_1d", "init_method", "layer_id", "lambda_init"})
    info.golden.config.emplace_back("mta." + std::string(same), same);
  info.golden.defaults =
      R"({"rope": false, "query_kernel_size": 1, "key_kernel_size": 1, "after_sm_query_kernel_size": null,
          "after_sm_key_kernel_size": null, "pre_sm_linear_head": false, "head_kernel_size": null, "group_norm": false,
          "add_gating": false})";
  info.golden.fixed = R"({"parity": true})";
  return info;
}

}  // namespace regard
