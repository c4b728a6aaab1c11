#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "regard/nn/mechanism.h"

namespace regard {

/// The Vision Transformer (ViT, DeiT, DeiT III, registers), host of any registered mixer and pool:
///
///     t = [class, registers, patches(x) W_e] + positions
///     t <- t + ls1 * mixer(norm1 t);  t <- t + ls2 * fc2(gelu(fc1(norm2 t)))        depth times
///     logits = head(fc_norm(pool(norm t)))
///
/// x (B, C, H, W) -> logits (B, num_classes); with num_classes 0 the pooled features (B, D), with global_pool '' the
/// tokens through the head (B, P + N, ...). N = (H/p)(W/p) patches, P prefix tokens (class, distillation, registers).
/// Configuration names, weight names and defaults are timm's; all norms have epsilon 1e-6, the GELU is the exact one.
///
/// The mixer of every block is the registered mechanism `mixer`, its weights under "blocks.{i}.attn."; it is given the
/// grid and the number of prefix tokens. For softmax-attention the weights carry timm's names (qkv, proj, q_norm,
/// k_norm, norm). A registered pool named by `pool` takes the place of global_pool, its weights under "pool.".
///
/// Layers are named by their weights: output "blocks.3.attn.tap.entropy" is tap "entropy" of block 3's mixer, an edit
/// of layer "blocks.*.attn" changes every block's, "pool.attn" is output "attn" of a registered pool, "attn_pool" is
/// the attention of the pools map and prr. What a mixer publishes reaches the mixers that consume it in later blocks;
/// output "loss" is the sum of auxiliary losses, "loss.NAME" of those of a name.
///
/// Throws regard::Error for a width that the heads do not divide, the class-token pool without a class token, a mixer
/// without a place for prefix tokens beside class or register tokens, an image that does not fit img_size or patches.
///
/// Dosovitskiy et al. 2020, An Image is Worth 16x16 Words (arXiv 2010.11929); Touvron et al. 2012.12877, 2204.07118;
/// Darcet et al. 2309.16588.
struct ViT {
  struct Config {
    std::vector<int64_t> img_size = {224};
    std::vector<int64_t> patch_size = {16};
    int64_t in_chans = 3;
    int64_t num_classes = 1000;
    std::string global_pool = "token";
    int64_t embed_dim = 768;
    int64_t depth = 12;
    int64_t num_heads = 12;
    double mlp_ratio = 4.0;
    bool qkv_bias = true;
    bool qk_norm = false;
    bool scale_attn_norm = false;
    bool scale_mlp_norm = false;
    bool proj_bias = true;
    std::optional<double> init_values;
    bool class_token = true;
    std::string pos_embed = "learn";
    bool no_embed_class = false;
    int64_t reg_tokens = 0;
    bool pre_norm = false;
    bool final_norm = true;
    std::optional<bool> fc_norm;
    bool pool_include_prefix = false;
    bool dynamic_img_size = false;
    bool dynamic_img_pad = false;
    double drop_rate = 0;
    double pos_drop_rate = 0;
    double patch_drop_rate = 0;
    double proj_drop_rate = 0;
    double attn_drop_rate = 0;
    double drop_path_rate = 0;
    std::string weight_init;
    bool fix_init = false;
    bool distilled = false;
    std::string mixer = "softmax-attention";
    std::string mixer_config = "{}";
    std::string pool;
    std::string pool_config = "{}";
    std::vector<int64_t> out_indices;

    void fields(Fields& f);
    void validate() const;

    // Derived.
    std::vector<int64_t> image() const;       ///< (H, W)
    std::vector<int64_t> patch() const;       ///< (p, q)
    std::vector<int64_t> grid() const;        ///< floor(H/p), floor(W/q)
    int64_t prefix() const;                   ///< class + distillation + register tokens
    int64_t hidden() const;                   ///< int(mlp_ratio D)
    bool positions() const;                   ///< learned ones
    bool layer_scale() const;                 ///< init_values given and not 0
    bool norm_after_pool() const;             ///< fc_norm resolved
    double drop_path(int64_t block) const;    ///< drop_path_rate i / (depth - 1)
    std::vector<int64_t> blocks_out() const;  ///< out_indices resolved, all when empty
    std::shared_ptr<const Instance> mixer_instance() const;
    std::shared_ptr<const Instance> pool_instance() const;  ///< null without `pool`
  };

  static Info info();
  static void declare(const Config& config, Declaration& weights);
  static at::Tensor forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context);
};

/// Norm epsilon of ViT everywhere (not torch's 1e-5).
inline constexpr double vit_epsilon = 1e-6;

}  // namespace regard
