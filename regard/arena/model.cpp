#include "regard/arena/model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard::arena {
namespace {

using nlohmann::json;

json config_for(const Settings& settings, const std::string& id) {
  const auto it = settings.configs.find(id);
  if (it == settings.configs.end()) return json::object();
  json config = json::parse(it->second, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object())
    fail("arena", "the configuration of '" + id + "' to be a JSON object", "'" + it->second + "'");
  return config;
}

bool without_decay(const WeightDeclaration& weight) {
  if (weight.shape.size() < 2) return true;
  for (const char* name : {"pos_embed", "cls_token", "reg_token", "dist_token"})
    if (weight.name.ends_with(name)) return true;
  return false;
}

}  // namespace

std::shared_ptr<const Instance> model_of(const Settings& settings, const std::string& mixer, const std::string& pool) {
  const json config = {{"img_size", {8}},
                       {"patch_size", {settings.patch}},
                       {"in_chans", 1},
                       {"num_classes", 10},
                       {"embed_dim", settings.width},
                       {"depth", settings.depth},
                       {"num_heads", settings.heads},
                       {"mlp_ratio", settings.mlp_ratio},
                       // Weights of 0.02 (timm's default) are too small for so narrow a model: it would learn slowly.
                       {"weight_init", "jax"},
                       {"class_token", mechanism(pool).info().needs_prefix},
                       {"mixer", mixer},
                       {"mixer_config", config_for(settings, mixer)},
                       {"pool", pool},
                       {"pool_config", config_for(settings, pool)}};
  return mechanism("vit").configure(config.dump());
}

std::vector<std::string> resolve_names(const std::vector<std::string>& names, Role role) {
  std::vector<std::string> known;
  for (const Mechanism* one : mechanisms())
    if (one->info().role == role) known.push_back(one->info().id);
  if (names.empty()) return known;
  std::vector<std::string> unique;
  for (const auto& name : names) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      fail("arena", std::string(role == Role::mixer ? "mixers" : "pools") + " among " + quoted_list(known),
           "'" + name + "'" + suggestion(name, known));
    if (std::find(unique.begin(), unique.end(), name) == unique.end()) unique.push_back(name);
  }
  return unique;
}

namespace {

/// Whether a pair that the settings refuse would go together without the configurations that the caller gave.
bool refused_by_config(const Settings& settings, const std::string& mixer, const std::string& pool) {
  if (!settings.configs.count(mixer) && !settings.configs.count(pool)) return false;
  Settings plain = settings;
  plain.configs.clear();
  try {
    model_of(plain, mixer, pool);
  } catch (const Error&) {
    return false;
  }
  return true;
}

}  // namespace

void require_compared(const Settings& settings) {
  std::vector<std::string> compared = settings.mixers;
  compared.insert(compared.end(), settings.pools.begin(), settings.pools.end());
  for (const auto& [id, unused] : settings.configs)
    if (std::find(compared.begin(), compared.end(), id) == compared.end())
      fail("arena", "--config of a mixer or pool of this run, " + quoted_list(compared),
           "'" + id + "'" + suggestion(id, compared));
}

std::vector<Job> plan(const Settings& settings, std::vector<Skipped>& skipped) {
  // Malformed JSON is an error of the caller's, not a pair that does not go together.
  for (const auto& [id, unused] : settings.configs) config_for(settings, id);
  std::vector<Job> jobs;
  for (const auto& mixer : settings.mixers) {
    for (const auto& pool : settings.pools) {
      try {
        model_of(settings, mixer, pool);
      } catch (const Error& error) {
        if (refused_by_config(settings, mixer, pool)) throw;
        skipped.push_back({mixer, pool, error.what()});
        continue;
      }
      for (int64_t seed = 0; seed < settings.seeds; ++seed) jobs.push_back({mixer, pool, seed});
    }
  }
  return jobs;
}

FlatWeights::FlatWeights(const Instance& instance, at::Generator generator) {
  const auto fresh = initialize(instance, {}, generator);
  const auto& declared = instance.weights();
  std::vector<at::Tensor> parts[2];
  for (size_t i = 0; i < declared.size(); ++i) {
    const auto& weight = declared[i];
    if (!weight.alias.empty()) {
      const auto tied = std::find_if(declared.begin(), declared.end(),
                                     [&](const WeightDeclaration& other) { return other.name == weight.alias; });
      places_.push_back(places_[static_cast<size_t>(tied - declared.begin())]);
      continue;
    }
    const int leaf = weight.buffer ? 2 : without_decay(weight) ? 1 : 0;
    places_.push_back({leaf, leaf == 2 ? buffers_.size() : parts[leaf].size(), weight.shape});
    if (leaf == 2) {
      buffers_.push_back(fresh[i]);
      continue;
    }
    parts[leaf].push_back(fresh[i].flatten());
    sizes_[leaf].push_back(fresh[i].numel());
  }
  for (int leaf = 0; leaf < 2; ++leaf)
    leaves_[leaf] = (parts[leaf].empty() ? at::zeros({0}) : at::cat(parts[leaf])).requires_grad_(true);
}

std::vector<at::Tensor> FlatWeights::views() const {
  std::vector<at::Tensor> split[2];
  for (int leaf = 0; leaf < 2; ++leaf)
    if (!sizes_[leaf].empty()) split[leaf] = leaves_[leaf].split_with_sizes(sizes_[leaf]);
  std::vector<at::Tensor> weights;
  for (const Place& place : places_)
    weights.push_back(place.leaf == 2 ? buffers_[place.index] : split[place.leaf][place.index].view(place.shape));
  return weights;
}

}  // namespace regard::arena
