#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/models/vit.h"

namespace regard {
namespace {

using nlohmann::json;

void one_of(const char* field, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    fail("vit", std::string(field) + " to be one of " + quoted_list(choices),
         "'" + value + "'" + suggestion(value, choices));
}

void at_least(const char* field, int64_t value, int64_t least) {
  if (value < least) fail("vit", std::string(field) + " of at least " + std::to_string(least), std::to_string(value));
}

void rate(const char* field, double value) {
  if (!(value >= 0 && value < 1)) fail("vit", std::string(field) + " in [0, 1)", std::to_string(value));
}

void size_or_pair(const char* field, const std::vector<int64_t>& sizes) {
  if (sizes.empty() || sizes.size() > 2)
    fail("vit", std::string(field) + " to be one size or two (height, width)", std::to_string(sizes.size()) + " sizes");
  for (const int64_t size : sizes) at_least(field, size, 1);
}

std::vector<int64_t> pair_of(const std::vector<int64_t>& sizes) { return {sizes.front(), sizes.back()}; }

std::string pair_text(const std::vector<int64_t>& sizes) {
  return std::to_string(sizes[0]) + "x" + std::to_string(sizes[1]);
}

/// What the host tells a mechanism inside it, as far as the mechanism has such fields; the user's own keys win.
std::shared_ptr<const Instance> inner(const std::string& id, Role role, const char* field, const json& offered,
                                      const std::string& given) {
  const Mechanism& found = mechanism(id);
  if (found.info().role != role) fail("vit", std::string(field) + " to name a " + field, "'" + id + "', which is none");
  json config = json::object();
  for (const auto& port : found.config_fields())
    if (offered.contains(port.name)) config[port.name] = offered[port.name];
  const json own = json::parse(given);
  // Tokens inside a host are as wide as the host says.
  if (own.contains("width") && own["width"] != offered["width"])
    fail("vit", std::string(field) + "_config without width, or with embed_dim " + offered["width"].dump(),
         own["width"].dump());
  config.update(own);
  return found.configure(config.dump());
}

void check_tokens(const ViT::Config& c) {
  const Info& mixer = c.mixer_instance()->info();
  if (!mixer.takes_prefix && c.prefix() > 0)
    fail("vit",
         "class_token false, reg_tokens 0 and distilled false with the mixer '" + c.mixer +
             "', which has no place for tokens outside the grid",
         std::to_string(c.prefix()) + " such tokens");
  if (mixer.needs_grid && c.patch_drop_rate > 0)
    fail("vit", "patch_drop_rate 0 with the mixer '" + c.mixer + "', which needs the grid",
         std::to_string(c.patch_drop_rate));
  if (c.distilled && !c.class_token) fail("vit", "class_token true with distilled", "class_token false");
  if (c.distilled && (c.global_pool != "token" || !c.pool.empty()))
    fail("vit", "global_pool 'token' with distilled (two tokens, two heads)",
         c.pool.empty() ? "global_pool '" + c.global_pool + "'" : "pool '" + c.pool + "'");
}

void check_pool(const ViT::Config& c) {
  if (c.pool.empty()) {
    if (c.global_pool == "token" && !c.class_token)
      fail("vit", "class_token true with global_pool 'token'", "class_token false");
    if (c.pool_config != "{}") fail("vit", "pool_config only with pool", "pool_config " + c.pool_config + " alone");
    return;
  }
  if (c.global_pool != "token")
    fail("vit", "either pool or global_pool", "pool '" + c.pool + "' and global_pool '" + c.global_pool + "'");
  if (c.pool_instance()->info().needs_prefix && !c.class_token)
    fail("vit", "class_token true with the pool '" + c.pool + "', which reads the class token", "class_token false");
}

void check_image(const ViT::Config& c) {
  size_or_pair("img_size", c.img_size);
  size_or_pair("patch_size", c.patch_size);
  const auto image = c.image(), patch = c.patch();
  if (image[0] < patch[0] || image[1] < patch[1])
    fail("vit", "img_size of at least patch_size " + pair_text(patch), pair_text(image));
  if (c.dynamic_img_pad && !c.dynamic_img_size && (image[0] % patch[0] || image[1] % patch[1]))
    fail("vit", "dynamic_img_size true with dynamic_img_pad when patch_size does not divide img_size",
         "img_size " + pair_text(image) + ", patch_size " + pair_text(patch));
}

}  // namespace

void ViT::Config::fields(Fields& f) {
  f("img_size", img_size, "image height and width; one number for both");
  f("patch_size", patch_size, "patch height and width; one number for both");
  f("in_chans", in_chans, "image channels C");
  f("num_classes", num_classes, "width of the head; 0: no head");
  f("global_pool", global_pool, "token | avg | max | avgmax | map | prr | '' or none (tokens are returned)");
  f("embed_dim", embed_dim, "model width D");
  f("depth", depth, "number of blocks");
  f("num_heads", num_heads, "heads H of attention");
  f("mlp_ratio", mlp_ratio, "hidden width of the feed-forward over D");
  f("qkv_bias", qkv_bias, "biases of the query, key and value projections");
  f("qk_norm", qk_norm, "LayerNorm of queries and keys, per head");
  f("scale_attn_norm", scale_attn_norm, "LayerNorm before the output projection of attention");
  f("scale_mlp_norm", scale_mlp_norm, "LayerNorm before fc2");
  f("proj_bias", proj_bias, "biases of the output projection and of fc1, fc2");
  f("init_values", init_values, "LayerScale's initial value; none or 0: no LayerScale");
  f("class_token", class_token, "a learned token in front of the patches");
  f("pos_embed", pos_embed, "learn | none (also '')");
  f("no_embed_class", no_embed_class, "positions for patches only");
  f("reg_tokens", reg_tokens, "register tokens after the class token");
  f("pre_norm", pre_norm, "LayerNorm before the first block (and no bias in the patch embedding)");
  f("final_norm", final_norm, "LayerNorm after the last block");
  f("fc_norm", fc_norm, "final norm after the pool; null: for avg, max, avgmax and registered pools");
  f("pool_include_prefix", pool_include_prefix, "pools see class and register tokens too");
  f("dynamic_img_size", dynamic_img_size, "any image size that the patch divides; positions are resized");
  f("dynamic_img_pad", dynamic_img_pad, "pad right and bottom with zeros to whole patches");
  f("drop_rate", drop_rate, "dropout before the head");
  f("pos_drop_rate", pos_drop_rate, "dropout after positions");
  f("patch_drop_rate", patch_drop_rate, "share of patches left out in training");
  f("proj_drop_rate", proj_drop_rate, "dropout after projections of attention and feed-forward");
  f("attn_drop_rate", attn_drop_rate, "dropout of attention weights");
  f("drop_path_rate", drop_path_rate, "stochastic depth of the last block, growing linearly from 0");
  f("weight_init", weight_init, "'' (timm) | jax | jax_nlhb | moco");
  f("fix_init", fix_init, "divide proj and fc2 of block i by sqrt(2 (i + 1))");
  f("distilled", distilled, "distillation token and second head (DeiT)");
  f("mixer", mixer, "id of the token mixer of every block");
  f.nested("mixer_config", mixer_config, "configuration of the mixer, over what the host tells it");
  f("pool", pool, "id of a registered pool in place of global_pool");
  f.nested("pool_config", pool_config, "configuration of the pool, over what the host tells it");
  f("out_indices", out_indices, "blocks in the output 'maps' (negative: from the end); empty: all");
}

std::vector<int64_t> ViT::Config::image() const { return pair_of(img_size); }
std::vector<int64_t> ViT::Config::patch() const { return pair_of(patch_size); }
std::vector<int64_t> ViT::Config::grid() const { return {image()[0] / patch()[0], image()[1] / patch()[1]}; }
int64_t ViT::Config::prefix() const { return (class_token ? 1 : 0) + (distilled ? 1 : 0) + reg_tokens; }
int64_t ViT::Config::hidden() const { return static_cast<int64_t>(static_cast<double>(embed_dim) * mlp_ratio); }
bool ViT::Config::positions() const { return pos_embed == "learn"; }
bool ViT::Config::layer_scale() const { return init_values.has_value() && *init_values != 0; }

bool ViT::Config::norm_after_pool() const {
  if (fc_norm) return *fc_norm;
  // A pool that reads the class token alone is where timm's 'token' is: after the norm.
  if (!pool.empty()) return !pool_instance()->info().needs_prefix;
  return global_pool == "avg" || global_pool == "max" || global_pool == "avgmax";
}

double ViT::Config::drop_path(int64_t block) const {
  return depth < 2 ? 0 : drop_path_rate * static_cast<double>(block) / static_cast<double>(depth - 1);
}

std::vector<int64_t> ViT::Config::blocks_out() const {
  std::vector<int64_t> blocks;
  for (const int64_t index : out_indices) blocks.push_back(index < 0 ? index + depth : index);
  for (int64_t i = 0; out_indices.empty() && i < depth; ++i) blocks.push_back(i);
  return blocks;
}

std::shared_ptr<const Instance> ViT::Config::mixer_instance() const {
  const json offered = {{"width", embed_dim},          {"heads", num_heads},         {"qkv_bias", qkv_bias},
                        {"out_bias", proj_bias},       {"qk_norm", qk_norm},         {"output_norm", scale_attn_norm},
                        {"attn_drop", attn_drop_rate}, {"norm_epsilon", vit_epsilon}};
  return inner(mixer, Role::mixer, "mixer", offered, mixer_config);
}

std::shared_ptr<const Instance> ViT::Config::pool_instance() const {
  if (pool.empty()) return nullptr;
  return inner(pool, Role::pool, "pool", {{"width", embed_dim}}, pool_config);
}

void ViT::Config::validate() const {
  check_image(*this);
  at_least("in_chans", in_chans, 1);
  at_least("num_classes", num_classes, 0);
  at_least("embed_dim", embed_dim, 1);
  at_least("depth", depth, 0);
  at_least("num_heads", num_heads, 1);
  at_least("reg_tokens", reg_tokens, 0);
  if (embed_dim % num_heads)
    fail("vit", "embed_dim to be a multiple of num_heads " + std::to_string(num_heads), std::to_string(embed_dim));
  if (!(mlp_ratio > 0) || hidden() < 1)
    fail("vit", "mlp_ratio with int(mlp_ratio * embed_dim) of at least 1", std::to_string(mlp_ratio));
  one_of("global_pool", global_pool, {"token", "avg", "max", "avgmax", "map", "prr", "", "none"});
  one_of("pos_embed", pos_embed, {"learn", "none", ""});
  one_of("weight_init", weight_init, {"", "jax", "jax_nlhb", "moco"});
  rate("drop_rate", drop_rate);
  rate("pos_drop_rate", pos_drop_rate);
  rate("patch_drop_rate", patch_drop_rate);
  rate("proj_drop_rate", proj_drop_rate);
  rate("attn_drop_rate", attn_drop_rate);
  rate("drop_path_rate", drop_path_rate);
  for (size_t i = 0; i < out_indices.size(); ++i)
    if (out_indices[i] < -depth || out_indices[i] >= depth)
      fail("vit", "out_indices in [-depth, depth)", std::to_string(out_indices[i]));
  check_tokens(*this);
  check_pool(*this);
}

}  // namespace regard
