#pragma once

#include <cstdint>

// The names of other families beside timm's; read by checkpoint_names.cpp alone.
namespace regard::checkpoint_rules {

/// How the foreign array is laid out.
enum class Layout : uint8_t {
  same,
  linear,         ///< (inputs, outputs)
  convolution,    ///< (p, q, C, D)
  heads_in,       ///< (D, heads, Dh)
  heads_in_bias,  ///< (heads, Dh)
  heads_out,      ///< (heads, Dh, D)
};

struct Rule {
  const char* foreign;  ///< {} stands for the block
  const char* ours;
  Layout layout = Layout::same;
  int part = -1;  ///< 0, 1, 2: query, key, value of a stacked tensor
};

constexpr Rule deit3_rules[] = {
    {"blocks.{}.gamma_1", "blocks.{}.ls1.gamma"},
    {"blocks.{}.gamma_2", "blocks.{}.ls2.gamma"},
};

constexpr Rule huggingface_rules[] = {
    {"embeddings.cls_token", "cls_token"},
    {"embeddings.distillation_token", "dist_token"},
    {"embeddings.position_embeddings", "pos_embed"},
    {"embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight"},
    {"embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias"},
    {"encoder.layer.{}.layernorm_before.weight", "blocks.{}.norm1.weight"},
    {"encoder.layer.{}.layernorm_before.bias", "blocks.{}.norm1.bias"},
    {"encoder.layer.{}.attention.attention.query.weight", "blocks.{}.attn.qkv.weight", Layout::same, 0},
    {"encoder.layer.{}.attention.attention.key.weight", "blocks.{}.attn.qkv.weight", Layout::same, 1},
    {"encoder.layer.{}.attention.attention.value.weight", "blocks.{}.attn.qkv.weight", Layout::same, 2},
    {"encoder.layer.{}.attention.attention.query.bias", "blocks.{}.attn.qkv.bias", Layout::same, 0},
    {"encoder.layer.{}.attention.attention.key.bias", "blocks.{}.attn.qkv.bias", Layout::same, 1},
    {"encoder.layer.{}.attention.attention.value.bias", "blocks.{}.attn.qkv.bias", Layout::same, 2},
    {"encoder.layer.{}.attention.output.dense.weight", "blocks.{}.attn.proj.weight"},
    {"encoder.layer.{}.attention.output.dense.bias", "blocks.{}.attn.proj.bias"},
    {"encoder.layer.{}.layernorm_after.weight", "blocks.{}.norm2.weight"},
    {"encoder.layer.{}.layernorm_after.bias", "blocks.{}.norm2.bias"},
    {"encoder.layer.{}.intermediate.dense.weight", "blocks.{}.mlp.fc1.weight"},
    {"encoder.layer.{}.intermediate.dense.bias", "blocks.{}.mlp.fc1.bias"},
    {"encoder.layer.{}.output.dense.weight", "blocks.{}.mlp.fc2.weight"},
    {"encoder.layer.{}.output.dense.bias", "blocks.{}.mlp.fc2.bias"},
    {"layernorm.weight", "norm.weight"},
    {"layernorm.bias", "norm.bias"},
    {"classifier.weight", "head.weight"},
    {"classifier.bias", "head.bias"},
    {"cls_classifier.weight", "head.weight"},
    {"cls_classifier.bias", "head.bias"},
    {"distillation_classifier.weight", "head_dist.weight"},
    {"distillation_classifier.bias", "head_dist.bias"},
};

#define REGARD_ENCODER "Transformer/encoderblock_{}/"
constexpr Rule google_rules[] = {
    {"cls", "cls_token"},
    {"Transformer/posembed_input/pos_embedding", "pos_embed"},
    {"embedding/kernel", "patch_embed.proj.weight", Layout::convolution},
    {"embedding/bias", "patch_embed.proj.bias"},
    {REGARD_ENCODER "LayerNorm_0/scale", "blocks.{}.norm1.weight"},
    {REGARD_ENCODER "LayerNorm_0/bias", "blocks.{}.norm1.bias"},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/query/kernel", "blocks.{}.attn.qkv.weight", Layout::heads_in, 0},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/key/kernel", "blocks.{}.attn.qkv.weight", Layout::heads_in, 1},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/value/kernel", "blocks.{}.attn.qkv.weight", Layout::heads_in, 2},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/query/bias", "blocks.{}.attn.qkv.bias", Layout::heads_in_bias, 0},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/key/bias", "blocks.{}.attn.qkv.bias", Layout::heads_in_bias, 1},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/value/bias", "blocks.{}.attn.qkv.bias", Layout::heads_in_bias, 2},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/out/kernel", "blocks.{}.attn.proj.weight", Layout::heads_out},
    {REGARD_ENCODER "MultiHeadDotProductAttention_1/out/bias", "blocks.{}.attn.proj.bias"},
    {REGARD_ENCODER "LayerNorm_2/scale", "blocks.{}.norm2.weight"},
    {REGARD_ENCODER "LayerNorm_2/bias", "blocks.{}.norm2.bias"},
    {REGARD_ENCODER "MlpBlock_3/Dense_0/kernel", "blocks.{}.mlp.fc1.weight", Layout::linear},
    {REGARD_ENCODER "MlpBlock_3/Dense_0/bias", "blocks.{}.mlp.fc1.bias"},
    {REGARD_ENCODER "MlpBlock_3/Dense_1/kernel", "blocks.{}.mlp.fc2.weight", Layout::linear},
    {REGARD_ENCODER "MlpBlock_3/Dense_1/bias", "blocks.{}.mlp.fc2.bias"},
    {"Transformer/encoder_norm/scale", "norm.weight"},
    {"Transformer/encoder_norm/bias", "norm.bias"},
    {"head/kernel", "head.weight", Layout::linear},
    {"head/bias", "head.bias"},
};
#undef REGARD_ENCODER

}  // namespace regard::checkpoint_rules
