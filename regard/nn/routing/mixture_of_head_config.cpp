#include "regard/base/error.h"
#include "regard/nn/dropout.h"
#include "regard/nn/routing/mixture_of_head.h"

namespace regard {
namespace {

using Config = MixtureOfHead::Config;
constexpr const char* id = "mixture-of-head";

void check_routing(const Config& c) {
  if (c.shared_heads < 0 || c.shared_heads > c.heads)
    fail(id, "shared_heads in [0, heads = " + std::to_string(c.heads) + "]", std::to_string(c.shared_heads));
  if (c.routed_heads < 0 || c.routed_heads > c.choices())
    fail(id, "routed_heads in [0, heads - shared_heads = " + std::to_string(c.choices()) + "]",
         std::to_string(c.routed_heads));
  require((c.routed_heads == 0) == (c.choices() == 0), id, "routed_heads >= 1 where not all heads are shared",
          std::to_string(c.routed_heads));
  require(c.learned() || c.router == "query_norm", id, "router 'learned' or 'query_norm'", "'" + c.router + "'");
  require(c.learned() || c.choices() >= 2, id,
          "at least 2 heads to choose from with router 'query_norm' (one has no deviation)",
          std::to_string(c.choices()));
  require(c.execution == "dense" || c.execution == "gathered", id, "execution 'dense' or 'gathered'",
          "'" + c.execution + "'");
  require(c.execution == "dense" || c.attn_drop == 0, id, "attn_drop 0 with execution 'gathered'",
          std::to_string(c.attn_drop));
}

/// The DiT form: joint projections, a learned router.
Golden official_cases() {
  Golden golden;
  golden.config = {{"dim", "width"},
                   {"num_heads", "heads"},
                   {"head_dim=null", ""},
                   {"head_dim", "head_width"},
                   {"shared_head", "shared_heads"},
                   {"routed_head", "routed_heads"},
                   {"B", ""},
                   {"N", ""}};
  golden.outputs = {{"aux_loss", "+loss.balance"}};
  Golden llama;
  llama.folder = "mixture-of-head-llama";
  llama.config = {{"hidden_size", "width"},
                  {"num_heads", "heads"},
                  {"num_kv_heads", "kv_heads"},
                  {"shared_head", "shared_heads"},
                  {"routed_head", "routed_heads"},
                  {"head_dim=null", ""},
                  {"head_dim", "head_width"},
                  {"bias=true", R"({"qkv_bias": true, "out_bias": true})"},
                  {"bias=false", R"({"qkv_bias": false, "out_bias": false})"},
                  {"B", ""},
                  {"N", ""}};
  llama.fixed = R"({"router": "query_norm", "separate": true, "rope": true, "causal": true})";
  golden.forms = {llama};
  return golden;
}

}  // namespace

void MixtureOfHead::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key heads Hk, a divisor of heads; 0: heads");
  f("head_width", head_width, "width Dh of a head; 0: width / heads");
  f("shared_heads", shared_heads, "heads S that every token uses, the first ones");
  f("routed_heads", routed_heads, "heads K that a token uses of the others");
  f("router", router, "learned, or query_norm: the heads with the longest queries, gates 0 and 1");
  f("execution", execution, "dense: all heads for all tokens; gathered: routed heads for the tokens that chose them");
  f("separate", separate, "projections q_proj, k_proj, v_proj, o_proj instead of qkv and proj");
  f("qkv_bias", qkv_bias, "bias of the in-projections");
  f("out_bias", out_bias, "bias of the output projection");
  f("qk_norm", qk_norm, "LayerNorm over each head's queries and keys");
  f("norm_epsilon", norm_epsilon, "its epsilon");
  f("cosine", cosine, "cosine attention with a learned temperature and query embedding");
  f("rope", rope, "rotary position embedding of queries and keys");
  f("rope_theta", rope_theta, "base of its frequencies");
  f("rope_interleaved", rope_interleaved, "pairs (2t, 2t + 1) instead of (t, t + Dh / 2)");
  f("causal", causal, "query i sees keys j <= i");
  f("attn_drop", attn_drop, "dropout of the attention weights, in training");
  f("proj_drop", proj_drop, "dropout of y, in training");
}

void MixtureOfHead::Config::validate() const {
  require(rope_theta > 0, id, "rope_theta > 0", std::to_string(rope_theta));
  if (heads < 1 || (head_width == 0 && width % heads))
    fail(id, "heads >= 1 that divides width " + std::to_string(width) + " (or head_width)", std::to_string(heads));
  if (kv_heads < 0 || (kv_heads > 0 && heads % kv_heads))
    fail(id, "kv_heads that divides heads " + std::to_string(heads), std::to_string(kv_heads));
  require(head_width >= 0, id, "head_width >= 0", std::to_string(head_width));
  check_routing(*this);
  require(!rope || key_width() % 2 == 0, id, "an even head width with rope", std::to_string(key_width()));
  require(norm_epsilon > 0, id, "norm_epsilon > 0", std::to_string(norm_epsilon));
  require(!cosine || !causal, id, "cosine without causal (it scales by the number of keys)", "causal");
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
}

void MixtureOfHead::declare(const Config& config, Declaration& weights) {
  const int64_t rows = config.heads * config.key_width(), k_rows = config.key_heads() * config.key_width();
  if (config.separate) {
    weights.linear("q_proj", config.width, rows, config.qkv_bias);
    weights.linear("k_proj", config.width, k_rows, config.qkv_bias);
    weights.linear("v_proj", config.width, k_rows, config.qkv_bias);
  } else {
    weights.linear("qkv", config.width, rows + 2 * k_rows, config.qkv_bias);
  }
  if (config.qk_norm) {
    weights.layer_norm("q_norm", config.key_width());
    weights.layer_norm("k_norm", config.key_width());
  }
  weights.linear(config.separate ? "o_proj" : "proj", rows, config.width, config.out_bias);
  if (config.learned() && config.routed_heads > 0) {
    weights.linear("wg", config.width, config.choices(), false);
    if (config.shared_heads > 0) weights.linear("wg_0", config.width, 2, false);
  }
  if (config.learned() && config.shared_heads > 1) weights.linear("wg_1", config.width, config.shared_heads, false);
  if (config.cosine) {
    // softplus(temperature) = 1 / 0.24
    weights.weight("temperature", {config.heads, 1, 1}, Init::constant(4.151041371485852));
    weights.weight("query_embedding", {config.heads, 1, config.key_width()}, Init::truncated_normal(0.02));
  }
}

Info MixtureOfHead::info() {
  Info info;
  info.id = id;
  info.family = "routing";
  info.title = "Attention whose heads are experts: each token weighs all shared and its best routed heads";
  info.equation = "y = sum_h g_h o_h Wo_h, g = concat(a_0 S softmax(wg_1 x), a_1 K topk(softmax(wg x)))";
  info.paper = "Jin et al., 2024, MoH: Multi-Head Attention as Mixture-of-Head Attention";
  info.inputs = {{"memory", "(B, M, D): the tokens that keys and values are made of; the router reads x"},
                 {"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
                 {"memory_lengths", "(B) int64: tokens of each row of memory"},
                 {"bias", "(N, M) or (H, N, M): added to the scaled scores"},
                 {"positions", "(N) or (B, N): positions of x for RoPE; default 0, 1, ..."}};
  info.outputs = {{"attn", "(B, H, N, M): the attention weights, before the gates, formed in full"},
                  {"gates", "(B, N, H): what each head is multiplied by"},
                  {"topk_indices", "(B, N, K) int64: routed heads chosen, counted from 0, best first"}};
  info.losses = {{"balance", "R^2 mean_e(mean_t p mean_t m): K when the heads are used evenly"}};
  info.examples = {
      R"({"width": 12, "heads": 6, "shared_heads": 2, "routed_heads": 2, "qkv_bias": true})",
      R"({"width": 8, "heads": 4, "head_width": 3, "routed_heads": 2, "qk_norm": true})",
      R"({"width": 16, "heads": 8, "kv_heads": 2, "shared_heads": 4, "routed_heads": 2, "router": "query_norm", "separate": true, "rope": true, "out_bias": false, "causal": true})",
      R"({"width": 8, "heads": 4, "shared_heads": 1, "routed_heads": 1, "cosine": true})",
      R"({"width": 8, "heads": 2, "shared_heads": 2})"};
  info.golden = official_cases();
  return info;
}

}  // namespace regard
