// What SoftmaxAttention refuses, declares and says of itself; softmax_attention.cpp holds what it computes.

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/dense/softmax_attention.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

constexpr const char* id = "softmax-attention";

void require_one_of(const char* name, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    fail(id, std::string(name) + " among " + quoted_list(choices), "'" + value + "'" + suggestion(value, choices));
}

void require_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) fail(id, std::string(name) + " >= " + std::to_string(least), std::to_string(value));
}

void check_heads(const SoftmaxAttention::Config& c) {
  require_at_least("heads", c.heads, 1);
  for (const auto& [name, value] : {std::pair{"kv_heads", c.kv_heads},
                                    {"head_width", c.head_width},
                                    {"value_width", c.value_width},
                                    {"memory_width", c.memory_width},
                                    {"rope_width", c.rope_width},
                                    {"sinks", c.sinks}})
    require_at_least(name, value, 0);
  require(c.head_width > 0 || c.width % c.heads == 0, id, "width to be a multiple of heads, or head_width given",
          "width " + std::to_string(c.width) + ", heads " + std::to_string(c.heads));
  require(c.heads % c.key_heads() == 0, id, "heads to be a multiple of kv_heads",
          "heads " + std::to_string(c.heads) + ", kv_heads " + std::to_string(c.kv_heads));
  if (!c.rope) return;
  require(c.turned_width() % 2 == 0 && c.turned_width() <= c.key_width(), id,
          ("an even rope_width, at most the head width " + std::to_string(c.key_width())).c_str(),
          std::to_string(c.turned_width()));
  require(c.rope_theta > 0, id, "rope_theta > 0", std::to_string(c.rope_theta));
}

void check_normalizer(const SoftmaxAttention::Config& c) {
  require_one_of("normalizer", c.normalizer, {"softmax", "softmax1", "sigmoid", "relu", "none"});
  require_one_of("divisor", c.divisor, {"auto", "one", "keys", "sqrt_keys", "visible"});
  require_one_of("alignment", c.alignment, {"bottom_right", "top_left"});
  require(c.sinks == 0 || c.normalizer == "softmax", id, "sinks only with normalizer 'softmax'",
          "'" + c.normalizer + "'");
  require(!c.sigmoid_bias || c.normalizer == "sigmoid", id, "sigmoid_bias only with normalizer 'sigmoid'",
          "'" + c.normalizer + "'");
  require(c.divisor == "auto" || c.normalizer == "relu" || c.normalizer == "none", id,
          "a divisor only with normalizer 'relu' or 'none'", "'" + c.normalizer + "'");
  require(c.divisor != "sqrt_keys" || c.normalizer == "none", id, "divisor 'sqrt_keys' only with normalizer 'none'",
          "'" + c.normalizer + "'");
}

}  // namespace

void SoftmaxAttention::Config::validate() const {
  check_heads(*this);
  check_normalizer(*this);
  require_at_least("window_left", window_left, -1);
  require_at_least("window_right", window_right, -1);
  require(std::isfinite(softcap) && softcap >= 0, id, "softcap >= 0", std::to_string(softcap));
  require(!scale || std::isfinite(*scale), id, "a finite scale", std::to_string(scale.value_or(0)));
  require(norm_epsilon > 0, id, "norm_epsilon > 0", std::to_string(norm_epsilon));
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
}

void SoftmaxAttention::declare(const Config& config, Declaration& weights) {
  const int64_t q_rows = config.heads * config.key_width(), k_rows = config.key_heads() * config.key_width(),
                v_rows = config.key_heads() * config.values_width();
  if (config.separate()) {
    weights.weight("q_proj_weight", {q_rows, config.width}, Init::xavier_uniform());
    weights.weight("k_proj_weight", {k_rows, config.source_width()}, Init::xavier_uniform());
    weights.weight("v_proj_weight", {v_rows, config.source_width()}, Init::xavier_uniform());
  } else {
    weights.weight("in_proj_weight", {q_rows + k_rows + v_rows, config.width}, Init::xavier_uniform());
  }
  if (config.qkv_bias) weights.weight("in_proj_bias", {q_rows + k_rows + v_rows}, Init::zeros());
  if (config.qk_norm) {
    weights.layer_norm("q_norm", config.key_width());
    weights.layer_norm("k_norm", config.key_width());
  }
  const int64_t mixed_width = config.heads * config.values_width();
  if (config.output_norm) weights.layer_norm("norm", mixed_width);
  weights.linear("out_proj", mixed_width, config.width, config.out_bias, Init::kaiming_uniform(), Init::zeros());
  if (config.sinks == 1) weights.weight("sinks", {config.heads}, Init::zeros());
  if (config.sinks > 1) weights.weight("sinks", {config.heads, config.sinks}, Init::zeros());
}

Info SoftmaxAttention::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.role = Role::mixer;
  info.title = "Scaled dot-product attention, the baseline";
  info.equation = "y = concat_h(softmax(scale q_h k_h^T + bias) v_h) Wo";
  info.paper = "Vaswani et al., 2017, Attention Is All You Need";
  info.inputs = {{"memory", "(B, N, Dm): the tokens that keys and values are made of (cross-attention); default x"},
                 {"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
                 {"memory_lengths", "(B) int64: tokens of each row of memory"},
                 {"hidden", "bool, broadcast to (B, H, M, N), e.g. (M, N): true = NOT attended"},
                 {"key_hidden", "(B, N) bool: true = NOT attended by any query"},
                 {"bias", "broadcast to (B, H, M, N): added to the scaled scores"},
                 {"slopes", "(H): ALiBi slopes in place of the paper's"},
                 {"segments", "(B, M) int64: a query sees keys of its own segment"},
                 {"memory_segments", "(B, N) int64: segments of memory"},
                 {"positions",
                  "(M) or (B, M): positions of x for RoPE; default 0, 1, ... (with memory and causal, a window or "
                  "ALiBi: counted as alignment says)"},
                 {"memory_positions", "(N) or (B, N): positions of memory for RoPE; default 0, 1, ..."}};
  info.outputs = {{"attn", "(B, H, M, N): the weights p, formed in full"},
                  {"lse", "(B, H, M) float32: natural logarithm of the softmax's denominator"}};
  info.publishes = {
      {"significance", "(B, N): the weight that each key received, over heads and queries", "float (B, N)"}};
  info.examples = {
      R"({"width": 8, "heads": 2})", R"({"width": 8, "heads": 2, "causal": true, "rope": true})",
      R"({"width": 16, "heads": 4, "kv_heads": 2, "qk_norm": true, "alibi": true, "window_left": 2})",
      R"({"width": 12, "heads": 3, "head_width": 6, "value_width": 2, "softcap": 5.0, "sinks": 2, "output_norm": true})",
      R"({"width": 8, "heads": 2, "normalizer": "sigmoid", "causal": true, "qkv_bias": false})"};
  info.golden.config = {{"d_model", "width"}, {"n_heads", "heads"}, {"additive_bias", ""}, {"key_padding", ""}};
  info.golden.fixed = R"({"alignment": "top_left"})";  // torch's causal masks are triangles from the first pair
  info.golden.inputs = {{"context", "memory"}};
  info.golden.outputs = {{"out", ""}, {"attn", "attn"}};
  return info;
}

}  // namespace regard
