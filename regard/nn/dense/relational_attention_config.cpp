#include <algorithm>

#include "regard/base/error.h"
#include "regard/nn/dense/relational_attention_relations.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

using Config = RelationalAttention::Config;
constexpr const char* id = "relational-attention";

void require_one_of(const char* name, const std::string& value, const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return;
  std::string list;
  for (const auto& item : allowed) list += (list.empty() ? "'" : ", '") + item + "'";
  fail(id, std::string(name) + " among " + list, "'" + value + "'");
}

void check_group(const char* name, int64_t kv_heads, int64_t heads) {
  if (kv_heads < 0 || (kv_heads > 0 && (heads == 0 || heads % kv_heads)))
    fail(id, std::string(name) + " that divides " + std::to_string(heads) + " heads", std::to_string(kv_heads));
}

void check_relations(const Config& c) {
  const bool relational = c.form == "relational";
  require(relational || (c.relations == 0 && c.relation_width == 0 && c.key_width == 0 && !c.symmetric), id,
          "relations, relation_width, key_width and symmetric only with form 'relational'", "'" + c.form + "'");
  if (!relational || c.relational_heads == 0) return;
  const int64_t total = c.relational_heads * c.head_width();
  if (c.relations < 0 || c.relation_width < 0 || c.key_width < 0 || c.relation_count() * c.relations_width() != total)
    fail(id, "relations * relation_width = relational_heads * head width = " + std::to_string(total),
         std::to_string(c.relation_count()) + " * " + std::to_string(c.relations_width()));
}

void check_sharing(const Config& c) {
  if (!c.share_attention) return;
  require(c.self_heads == c.relational_heads, id, "as many self_heads as relational_heads with share_attention",
          std::to_string(c.self_heads) + " and " + std::to_string(c.relational_heads));
  require(c.self_key_heads() == c.key_heads() && c.keys_width() == c.head_width() && c.self_kv_bias == c.kv_bias, id,
          "equal kv_heads, kv_bias and no key_width with share_attention", "others");
  require(c.form == "relational", id, "form 'relational' with share_attention", "'" + c.form + "'");
}

void check_future(const Config& c) {
  if (!c.causal) return;
  require(c.form == "rca" || c.activation != "softmax" || c.relational_heads == 0, id,
          "no activation 'softmax' of relations with causal (it is over all keys, later ones too)", "'softmax'");
  require(c.symbols != "relational" || c.causal_neighbors, id, "causal_neighbors with causal", "false");
}

void declare_self(const Config& config, Declaration& weights) {
  const int64_t rows = config.self_heads * config.head_width(), k_rows = config.self_key_heads() * config.head_width();
  const auto tied = [&](const std::string& ours, const std::string& theirs, bool bias) {
    weights.tied("self_attention." + ours + ".weight", "relational_attention." + theirs + ".weight");
    if (bias) weights.tied("self_attention." + ours + ".bias", "relational_attention." + theirs + ".bias");
  };
  if (config.share_attention) {
    tied("wq", "wq_attn", false);
    tied("wk", "wk_attn", config.kv_bias);
  } else {
    weights.linear("self_attention.wq", config.width, rows, false);
    weights.linear("self_attention.wk", config.width, k_rows, config.self_kv_bias);
  }
  weights.linear("self_attention.wv", config.width, k_rows, config.self_kv_bias);
  weights.linear("self_attention.wo", rows, rows, config.self_out_bias);
}

void declare_relational(const Config& config, Declaration& weights) {
  const int64_t D = config.width, rows = config.relational_heads * config.head_width(),
                k_rows = config.key_heads() * config.head_width();
  const auto linear = [&](const char* name, int64_t inputs, int64_t outputs, bool bias) {
    weights.linear(std::string("relational_attention.") + name, inputs, outputs, bias);
  };
  if (config.form == "rca") {
    linear("wq", D, rows, false);
    linear("wk", D, k_rows, config.kv_bias);
  } else if (config.form == "disrca") {
    linear("wq_attn", D, rows, false);
    linear("wk_attn", D, k_rows, config.kv_bias);
    linear("wq_rel", D, rows, false);
    linear("wk_rel", D, k_rows, config.kv_bias);
  } else {
    linear("wq_attn", D, config.relational_heads * config.keys_width(), false);
    linear("wk_attn", D, config.key_heads() * config.keys_width(), config.kv_bias);
    linear("wq_rel", D, rows, false);
    if (!config.symmetric) linear("wk_rel", D, rows, false);
    weights.weight("relational_attention.wr", {config.relational_heads, config.head_width(), config.relation_count()},
                   Init::kaiming_uniform());
  }
  linear("wv", D, k_rows, config.kv_bias);
  linear("wo", rows, rows, config.out_bias);
}

}  // namespace

void RelationalAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("self_heads", self_heads, "heads Hs of ordinary attention");
  f("relational_heads", relational_heads, "heads Hr that carry relations");
  f("form", form, "of the relational heads: relational, rca or disrca");
  f("relations", relations, "relations R; 0: relational_heads");
  f("relation_width", relation_width,
    "width Dr of a relation's products; 0: head width * relational_heads / relations");
  f("key_width", key_width, "width of the relational heads' queries and keys; 0: the head width");
  f("kv_heads", kv_heads, "key heads of the relational heads, a divisor; 0: relational_heads");
  f("self_kv_heads", self_kv_heads, "key heads of the self heads, a divisor; 0: self_heads");
  f("activation", activation, "of relations (rca: of scores): identity, relu, sigmoid, tanh, gelu, silu, softmax");
  f("symmetric", symmetric, "r_ij = r_ji: both sides share a projection");
  f("kv_bias", kv_bias, "bias of the relational heads' keys and values");
  f("out_bias", out_bias, "bias of their output projection");
  f("self_kv_bias", self_kv_bias, "bias of the self heads' keys and values");
  f("self_out_bias", self_out_bias, "bias of their output projection");
  f("share_attention", share_attention, "self and relational heads attend alike: shared query and key projections");
  f("rope", rope, "rotary position embedding of what the weights are made of; relations get none");
  f("rope_theta", rope_theta, "base of its frequencies");
  f("causal", causal, "query i sees keys j <= i");
  f("attn_drop", attn_drop, "dropout of the weights, in training");
  f("proj_drop", proj_drop, "dropout of y, in training");
  SymbolConfig::fields(f);
}

void RelationalAttention::Config::validate() const {
  require(rope_theta > 0, id, "rope_theta > 0", std::to_string(rope_theta));
  const int64_t heads = self_heads + relational_heads;
  if (self_heads < 0 || relational_heads < 0 || heads == 0 || width % heads)
    fail(id, "self_heads + relational_heads >= 1 that divides width " + std::to_string(width),
         std::to_string(self_heads) + " + " + std::to_string(relational_heads));
  require_one_of("form", form, {"relational", "rca", "disrca"});
  require_one_of("activation", activation, {"identity", "relu", "sigmoid", "tanh", "gelu", "silu", "softmax"});
  require_one_of("symbols", symbols, {"symbolic", "positional", "relative", "relational", "input"});
  check_group("kv_heads", kv_heads, relational_heads);
  check_group("self_kv_heads", self_kv_heads, self_heads);
  check_relations(*this);
  check_sharing(*this);
  check_future(*this);
  if (rope && (keys_width() % 2 || head_width() % 2))
    fail(id, "even widths of queries and keys with rope", std::to_string(keys_width()));
  SymbolConfig::validate(id, width);
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
}

void RelationalAttention::declare(const Config& config, Declaration& weights) {
  if (config.relational_heads) declare_relational(config, weights);
  if (config.self_heads) declare_self(config, weights);
  if (config.relational_heads) declare_symbols(config, config.width, "symbols.", weights);
}

Info RelationalAttention::info() {
  Info info;
  info.id = id;
  info.family = "dense";
  info.title = "Dual attention: heads of features beside heads of relations";
  info.equation =
      "o_i = sum_j softmax_j(<q_i, k_j> / sqrt(Dh)) (Ws s_j + Wr r_ij), r_ijl = act(<q_i^l, k_j^l> / sqrt(Dr))";
  info.paper =
      "Altabaa & Lafferty, 2024, Disentangling and Integrating Relational and Sensory Information in Transformer "
      "Architectures";
  info.inputs = {{"symbols", "(B, N, D): s, with symbols = 'input'"},
                 {"lengths", "(B) int64: tokens of each row of x; the rest is padding and gives zeros"},
                 {"hidden", "(N, N) bool: true = NOT attended"},
                 {"positions", "(N) or (B, N): positions of x for RoPE and positional symbols; default 0, 1, ..."}};
  info.outputs = {{"rel_attn", "(B, Hr, N, N): weights of the relational heads, formed in full"},
                  {"self_attn", "(B, Hs, N, N): weights of the self heads, formed in full"},
                  {"relations", "(B, N, N, R): r, formed in full"},
                  {"symbols", "(B, N, D): the symbols retrieved"}};
  info.examples = {
      R"({"width": 12, "self_heads": 1, "relational_heads": 2, "relations": 4, "symbol_heads": 2, "symbol_count": 5})",
      R"({"width": 8, "self_heads": 2, "relational_heads": 2, "symbols": "positional", "max_length": 32, "rope": true, "share_attention": true, "activation": "tanh"})",
      R"({"width": 8, "relational_heads": 2, "kv_heads": 1, "symbols": "relative", "max_distance": 2, "activation": "silu", "kv_bias": true})",
      R"({"width": 8, "relational_heads": 2, "symbols": "relational", "symmetric": true, "relations": 1, "activation": "gelu"})",
      R"({"width": 8, "relational_heads": 2, "relations": 2, "activation": "softmax"})",
      R"({"width": 8, "self_heads": 2, "relational_heads": 2, "form": "rca", "activation": "sigmoid"})",
      R"({"width": 8, "relational_heads": 2, "form": "rca", "activation": "softmax", "symbols": "relative"})",
      R"({"width": 8, "self_heads": 2, "self_kv_heads": 1, "relational_heads": 2, "form": "disrca", "kv_heads": 1, "activation": "relu"})"};
  info.golden = relational::official_cases();
  return info;
}

}  // namespace regard
