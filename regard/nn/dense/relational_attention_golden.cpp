// How cases of the official code map to relational attention and its symbols.

#include "regard/nn/dense/relational_attention_relations.h"

namespace regard::relational {
namespace {

// Options of the official classes: DualAttention, RelationalAttention and the symbol retrievers.
std::vector<std::pair<std::string, std::string>> official_options() {
  std::vector<std::pair<std::string, std::string>> options = {{"d_model", "width"},
                                                              {"n_heads_sa", "self_heads"},
                                                              {"n_heads_ra", "relational_heads"},
                                                              {"ra_type", "form"},
                                                              {"share_attn_params", "share_attention"},
                                                              {"is_causal", "causal"},
                                                              {"dropout", ""},
                                                              {"B", ""},
                                                              {"N", ""},
                                                              {"sa.n_kv_heads", "self_kv_heads"},
                                                              {"sa.add_bias_kv", "self_kv_bias"},
                                                              {"sa.add_bias_out", "self_out_bias"},
                                                              {"sym.n_heads", "symbol_heads"},
                                                              {"sym.n_symbols", "symbol_count"},
                                                              {"sym.scale", "symbol_scale"},
                                                              {"pos.max_rel_pos", "max_distance"},
                                                              {"max_rel_pos", "max_distance"},
                                                              {"*.d_model", ""},
                                                              {"*.symbol_dim", ""},
                                                              {"*.dropout", ""},
                                                              {"symbol_dim", ""}};
  for (const std::string part : {"ra.", ""}) {
    for (const auto& [official, ours] :
         std::vector<std::pair<std::string, std::string>>{{"n_relations", "relations"},
                                                          {"rel_proj_dim", "relation_width"},
                                                          {"key_dim", "key_width"},
                                                          {"n_kv_heads", "kv_heads"},
                                                          {"rel_activation", "activation"},
                                                          {"activation", "activation"},
                                                          {"symmetric_rels", "symmetric"},
                                                          {"add_bias_kv", "kv_bias"},
                                                          {"add_bias_out", "out_bias"},
                                                          {"use_relative_positional_symbols", ""},
                                                          {"total_n_heads", ""}}) {
      options.emplace_back(part + official + "=null", "");
      options.emplace_back(part + official, ours);
    }
  }
  return options;
}

std::vector<std::pair<std::string, std::string>> with(std::vector<std::pair<std::string, std::string>> first,
                                                      const std::vector<std::pair<std::string, std::string>>& rest) {
  first.insert(first.end(), rest.begin(), rest.end());
  return first;
}

/// A file of two calls: relational heads alone with relative symbols, and symbols by relations to neighbors.
Golden two_parts() {
  Golden heads;
  heads.config = with({{"rsa.*", ""},
                       {"rsa", ""},
                       {"n_heads", "relational_heads"},
                       {"ra.n_heads", "relational_heads"},
                       {"rel_n_heads", ""},
                       {"symbolic_attn_n_heads", ""},
                       {"n_symbols", ""},
                       {"nbhd_delta", ""},
                       {"causal_nbhd", ""},
                       {"include_self", ""},
                       {"normalize_rels", ""},
                       {"rel_scale", ""},
                       {"symbolic_attn_scale", ""}},
                      official_options());
  heads.fixed = R"({"symbols": "relative"})";
  heads.inputs = {{"attn_mask", "!hidden"}};
  heads.outputs = {{"rel_symbols", "-"}};
  heads.weights = {{"ra.", "relational_attention."}, {"pos.", "symbols."}, {"rsa.", "-"}};
  Golden symbols;
  symbols.mechanism = "symbol-retrieval";
  symbols.config = {{"d_model", "width"}};
  for (const std::string part : {"rsa.", ""}) {
    for (const auto& [official, ours] :
         std::vector<std::pair<std::string, std::string>>{{"rel_n_heads", "neighbor_heads"},
                                                          {"symbolic_attn_n_heads", "symbol_heads"},
                                                          {"n_symbols", "symbol_count"},
                                                          {"nbhd_delta", "neighbors"},
                                                          {"causal_nbhd", "causal_neighbors"},
                                                          {"include_self", "include_self"},
                                                          {"normalize_rels", "normalize_relations"},
                                                          {"rel_scale", "neighbor_scale"},
                                                          {"symbolic_attn_scale", "symbol_scale"}})
      symbols.config.emplace_back(part + official, ours);
  }
  symbols.config.emplace_back("*", "");
  symbols.fixed = R"({"symbols": "relational"})";
  symbols.inputs = {{"attn_mask", ""}};
  symbols.outputs = {{"rel_symbols", ""}, {"*", "-"}};
  symbols.weights = {{"rsa.", ""}, {"ra.", "-"}, {"pos.", "-"}};
  Golden form;
  form.when = "param.rsa.*";
  form.steps = {heads, symbols};
  return form;
}

}  // namespace

Golden official_cases() {
  Golden golden;
  golden.config = official_options();
  golden.inputs = {{"attn_mask", "!hidden"}};
  golden.weights = {{"dual.", ""}, {"sym.", "symbols."}};
  golden.forms = {two_parts()};
  return golden;
}

}  // namespace regard::relational
