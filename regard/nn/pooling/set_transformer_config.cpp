// What a set-transformer is made of: options, their checks, weights.

#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/dropout.h"
#include "regard/nn/pooling/set_transformer.h"

namespace regard {
namespace {

using Config = SetTransformer::Config;
constexpr const char* id = "set-transformer";
constexpr size_t most_stages = 8;  // as many outputs are named

const std::vector<std::string>& kinds() {
  static const std::vector<std::string> list = {"sab", "isab", "pma", "mab", "dropout", "linear"};
  return list;
}

int64_t count(const Config& config, const std::string& stage) {
  return std::count(config.stages.begin(), config.stages.end(), stage);
}

void check_stages(const Config& config) {
  const auto& stages = config.stages;
  require(!stages.empty() && stages.size() <= most_stages, id, "1 to 8 stages", std::to_string(stages.size()));
  for (const auto& stage : stages)
    if (std::find(kinds().begin(), kinds().end(), stage) == kinds().end())
      fail(id, "stages among " + quoted_list(kinds()), "'" + stage + "'" + suggestion(stage, kinds()));
  require(count(config, "pma") <= 1, id, "one stage pma at most", std::to_string(count(config, "pma")));
  require(config.has("linear") == (config.classes > 0), id, "classes > 0 with a stage linear, and only then",
          "classes " + std::to_string(config.classes));
  require(!config.has("linear") || (count(config, "linear") == 1 && stages.back() == "linear"), id,
          "linear as the last stage", "another place");
  require(config.names.empty() || config.names.size() == stages.size(), id, "one name for each stage",
          std::to_string(config.names.size()) + " names for " + std::to_string(stages.size()) + " stages");
}

void declare_mab(const Config& config, const std::string& name, int64_t q, int64_t k, Declaration& weights) {
  const int64_t inner = config.inner();
  weights.linear(name + "fc_q", q, inner);
  weights.linear(name + "fc_k", k, inner);
  weights.linear(name + "fc_v", k, inner);
  if (config.layer_norm) {
    weights.layer_norm(name + "ln0", inner);
    weights.layer_norm(name + "ln1", inner);
  }
  weights.linear(name + "fc_o", inner, inner);
}

}  // namespace

bool Config::has(const std::string& stage) const { return count(*this, stage) > 0; }

std::string Config::prefix(size_t stage) const {
  if (!names.empty()) return names[stage] + ".";
  const std::string& kind = stages[stage];
  if (count(*this, kind) == 1) return kind + ".";
  return kind + std::to_string(std::count(stages.begin(), stages.begin() + static_cast<std::ptrdiff_t>(stage), kind)) +
         ".";
}

void Config::fields(Fields& f) {
  f("width", width, "width D of the elements, required");
  f("hidden", hidden, "width W of the blocks; 0: width");
  f("heads", heads, "attention heads; W is cut into as many blocks");
  f("inducing", inducing, "learned points of an isab");
  f("seeds", seeds, "learned queries of a pma");
  f("layer_norm", layer_norm, "LayerNorms in the blocks");
  f("stages", stages, "sab | isab | pma | mab | dropout | linear, in order");
  f("names", names, "prefixes of the stages' weights; empty: the stages' kinds, numbered where one occurs twice");
  f("memory_width", memory_width, "width of the elements of memory that a mab reads; 0: width");
  f("classes", classes, "width of the stage linear");
  f("drop", drop, "probability of the stage dropout");
  f("keep_seeds", keep_seeds, "y (B, seeds, W) instead of the seeds side by side");
  f("include_prefix", include_prefix, "pool the prefix tokens (class, registers) too");
  f("norm_epsilon", norm_epsilon, "epsilon of the LayerNorms");
}

void Config::validate() const {
  require(hidden >= 0, id, "hidden >= 0", std::to_string(hidden));
  require(heads > 0 && inner() % heads == 0, id, "hidden (or width) to be a multiple of heads",
          std::to_string(inner()) + ", heads " + std::to_string(heads));
  require(inducing > 0, id, "inducing > 0", std::to_string(inducing));
  require(seeds > 0, id, "seeds > 0", std::to_string(seeds));
  require(memory_width >= 0, id, "memory_width >= 0", std::to_string(memory_width));
  require(norm_epsilon > 0, id, "norm_epsilon > 0", std::to_string(norm_epsilon));
  require_probability(id, "drop", drop);
  check_stages(*this);
  require(!keep_seeds || has("pma"), id, "a stage pma with keep_seeds", "none");
}

Info SetTransformer::info() {
  Info info;
  info.id = id;
  info.family = "pooling";
  info.role = Role::pool;
  info.title = "Set Transformer: MAB, SAB, ISAB and PMA as stages";
  info.equation = "MAB(Q, K) = n1(o + relu(o Wo)), o = n0(q + softmax(q k^T / sqrt(W)) v); PMA(X) = MAB(S, X)";
  info.paper =
      "Lee et al., 2019, Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks";
  info.inputs = {{"lengths", "(B) int64: elements of each row, prefix included; the rest is padding"},
                 {"memory", "(B, N, memory_width): the set that a stage mab reads"},
                 {"memory_lengths", "(B) int64: its elements of each row"}};
  info.outputs = {{"attn", "(B, heads, seeds, N): the weights of the pma"}};
  for (size_t i = 0; i < most_stages; ++i)
    info.outputs.push_back({"stage" + std::to_string(i), "(B, n, W): the elements behind this stage"});
  info.examples = {
      R"({"width": 8, "heads": 2, "inducing": 3})",
      R"({"width": 8, "hidden": 12, "heads": 3, "layer_norm": true, "stages": ["sab", "pma", "sab"], "seeds": 2})",
      R"({"width": 8, "heads": 2, "stages": ["sab", "sab"]})",
      R"({"width": 8, "heads": 2, "inducing": 4, "stages": ["isab", "dropout", "pma", "linear"], "classes": 5})"};
  info.golden.config = {{"dim_in", "width"},      {"dim_hidden", "hidden"}, {"num_heads", "heads"},
                        {"num_inds", "inducing"}, {"num_seeds", "seeds"},   {"ln", "layer_norm"}};
  info.golden.fixed = R"({"stages": ["isab", "sab", "pma"], "keep_seeds": true})";
  info.golden.outputs = {{"isab", "stage0"}, {"sab", "stage1"}, {"pma", ""}};
  return info;
}

void SetTransformer::declare(const Config& config, Declaration& weights) {
  const int64_t inner = config.inner();
  int64_t now = config.width;
  for (size_t i = 0; i < config.stages.size(); ++i) {
    const std::string &kind = config.stages[i], name = config.prefix(i);
    if (kind == "dropout") continue;
    if (kind == "linear") {
      weights.linear(name.substr(0, name.size() - 1), now, config.classes);
      continue;
    }
    if (kind == "sab") declare_mab(config, name + "mab.", now, now, weights);
    if (kind == "mab")
      declare_mab(config, name, now, config.memory_width ? config.memory_width : config.width, weights);
    if (kind == "isab") {
      weights.weight(name + "I", {1, config.inducing, inner}, Init::xavier_uniform());
      declare_mab(config, name + "mab0.", inner, now, weights);
      declare_mab(config, name + "mab1.", now, inner, weights);
    }
    if (kind == "pma") {
      // The seeds meet elements of the width that the stage before gives; the official models have W there.
      weights.weight(name + "S", {1, config.seeds, inner}, Init::xavier_uniform());
      declare_mab(config, name + "mab.", inner, now, weights);
    }
    now = inner;
  }
}

}  // namespace regard
