#include <algorithm>
#include <array>
#include <cmath>

#include "regard/models/vit.h"

namespace regard {
namespace {

/// Initializations of one `weight_init`, for weights of Linear layers by where they stand.
struct Scheme {
  const ViT::Config& config;
  bool jax() const { return config.weight_init.rfind("jax", 0) == 0; }
  bool moco() const { return config.weight_init == "moco"; }

  /// (outputs, inputs); `divisor` is fix_init's.
  Init linear(int64_t outputs, int64_t inputs, double divisor = 1) const {
    if (!jax() && !moco()) return Init::truncated_normal(0.02 / divisor);
    return Init::uniform(std::sqrt(6.0 / static_cast<double>(outputs + inputs)) / divisor);
  }
  /// q, k and v are initialized as three layers by moco, as one by jax.
  Init qkv(int64_t outputs, int64_t inputs) const { return linear(moco() ? outputs / 3 : outputs, inputs); }
  Init bias() const { return Init::zeros(); }
  Init mlp_bias() const { return jax() ? Init::normal(1e-6) : Init::zeros(); }
  Init head() const { return jax() ? Init::zeros() : linear(config.num_classes, config.embed_dim); }
  Init head_bias() const {
    return config.weight_init == "jax_nlhb" ? Init::constant(-std::log(static_cast<double>(config.num_classes)))
                                            : Init::zeros();
  }
  Init patch(int64_t fan_in) const {
    const double bound = 1 / std::sqrt(static_cast<double>(fan_in));  // torch's Conv2d; jax: LeCun's normal
    return jax() ? Init::normal(bound) : Init::uniform(bound);
  }
  Init patch_bias(int64_t fan_in) const {
    return jax() ? Init::zeros() : Init::uniform(1 / std::sqrt(static_cast<double>(fan_in)));
  }
};

using Renames = std::array<std::pair<const char*, const char*>, 3>;

/// softmax-attention's names to timm's; q_norm, k_norm and norm are the same in both.
constexpr Renames attention_names = {
    {{"in_proj_weight", "qkv.weight"}, {"in_proj_bias", "qkv.bias"}, {"out_proj.", "proj."}}};

std::string renamed(const std::string& name) {
  for (const auto& [from, to] : attention_names)
    if (name.rfind(from, 0) == 0) return to + name.substr(std::string(from).size());
  return name;
}

/// The mixer's weights; those of softmax-attention with timm's names and the scheme's initialization.
std::vector<WeightDeclaration> mixer_weights(const Scheme& scheme, double divisor) {
  std::vector<WeightDeclaration> declared = scheme.config.mixer_instance()->weights();
  if (scheme.config.mixer != "softmax-attention") return declared;
  for (auto& weight : declared) {
    weight.name = renamed(weight.name);
    if (!weight.alias.empty()) weight.alias = renamed(weight.alias);
    if (weight.name == "qkv.weight") weight.init = scheme.qkv(weight.shape[0], weight.shape[1]);
    if (weight.name == "proj.weight") weight.init = scheme.linear(weight.shape[0], weight.shape[1], divisor);
    if (weight.name == "qkv.bias" || weight.name == "proj.bias") weight.init = scheme.bias();
  }
  return declared;
}

void declare_embedding(const Scheme& scheme, Declaration& d) {
  const auto& c = scheme.config;
  const int64_t width = c.embed_dim, grid = c.grid()[0] * c.grid()[1];
  const auto patch = c.patch();
  if (c.class_token) d.weight("cls_token", {1, 1, width}, Init::normal(1e-6));
  if (c.distilled) d.weight("dist_token", {1, 1, width}, Init::truncated_normal(0.02));
  if (c.reg_tokens > 0) d.weight("reg_token", {1, c.reg_tokens, width}, Init::normal(1e-6));
  if (c.positions())
    d.weight("pos_embed", {1, grid + (c.no_embed_class ? 0 : c.prefix()), width}, Init::truncated_normal(0.02));
  const int64_t fan_in = c.in_chans * patch[0] * patch[1];
  d.weight("patch_embed.proj.weight", {width, c.in_chans, patch[0], patch[1]}, scheme.patch(fan_in));
  if (!c.pre_norm) d.weight("patch_embed.proj.bias", {width}, scheme.patch_bias(fan_in));
  if (c.pre_norm) d.layer_norm("norm_pre", width);
}

void declare_mlp(const Scheme& scheme, const std::string& name, bool bias, bool norm, double divisor, Declaration& d) {
  const int64_t width = scheme.config.embed_dim, hidden = scheme.config.hidden();
  d.linear(name + ".fc1", width, hidden, bias, scheme.linear(hidden, width), scheme.mlp_bias());
  if (norm) d.layer_norm(name + ".norm", hidden);
  d.linear(name + ".fc2", hidden, width, bias, scheme.linear(width, hidden, divisor), scheme.mlp_bias());
}

void declare_block(const Scheme& scheme, int64_t index, Declaration& d) {
  const auto& c = scheme.config;
  const std::string name = "blocks." + std::to_string(index) + ".";
  const double divisor = c.fix_init ? std::sqrt(2.0 * static_cast<double>(index + 1)) : 1.0;
  d.layer_norm(name + "norm1", c.embed_dim);
  d.include(name + "attn.", mixer_weights(scheme, divisor));
  if (c.layer_scale()) d.weight(name + "ls1.gamma", {c.embed_dim}, Init::constant(*c.init_values));
  d.layer_norm(name + "norm2", c.embed_dim);
  declare_mlp(scheme, name + "mlp", c.proj_bias, c.scale_mlp_norm, divisor, d);
  if (c.layer_scale()) d.weight(name + "ls2.gamma", {c.embed_dim}, Init::constant(*c.init_values));
}

void declare_pool(const Scheme& scheme, Declaration& d) {
  const auto& c = scheme.config;
  const int64_t width = c.embed_dim;
  if (const auto pool = c.pool_instance()) return d.include("pool.", pool->weights());
  if (c.global_pool != "map") return;
  const double latent = 1 / std::sqrt(static_cast<double>(width));
  d.weight("attn_pool.latent", {1, 1, width}, Init::truncated_normal(latent));
  d.linear("attn_pool.q", width, width, true, scheme.linear(width, width), scheme.bias());
  d.linear("attn_pool.kv", width, 2 * width, true, scheme.linear(2 * width, width), scheme.bias());
  d.linear("attn_pool.proj", width, width, true, scheme.linear(width, width), scheme.bias());
  d.layer_norm("attn_pool.norm", width);
  declare_mlp(scheme, "attn_pool.mlp", true, false, 1, d);
}

}  // namespace

void ViT::declare(const Config& c, Declaration& d) {
  const Scheme scheme{c};
  declare_embedding(scheme, d);
  for (int64_t i = 0; i < c.depth; ++i) declare_block(scheme, i, d);
  if (c.final_norm && !c.norm_after_pool()) d.layer_norm("norm", c.embed_dim);
  declare_pool(scheme, d);
  if (c.final_norm && c.norm_after_pool()) d.layer_norm("fc_norm", c.embed_dim);
  if (c.num_classes == 0) return;
  d.linear("head", c.embed_dim, c.num_classes, true, scheme.head(), scheme.head_bias());
  if (c.distilled) d.linear("head_dist", c.embed_dim, c.num_classes, true, scheme.head(), scheme.head_bias());
}

}  // namespace regard
