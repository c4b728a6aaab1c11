#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/dense/robust_token_attention.h"
#include "regard/nn/dropout.h"

namespace regard {
namespace {

/// torch.nn.BatchNorm2d's weights and running statistics.
void batch_norm(Declaration& weights, const std::string& name, int64_t channels) {
  weights.weight(name + ".weight", {channels}, Init::ones());
  weights.weight(name + ".bias", {channels}, Init::zeros());
  weights.buffer(name + ".running_mean", {channels}, Init::zeros());
  weights.buffer(name + ".running_var", {channels}, Init::ones());
}

void convolution(Declaration& weights, const std::string& name, std::vector<int64_t> shape, bool bias) {
  int64_t fan_in = 1;
  for (size_t d = 1; d < shape.size(); ++d) fan_in *= shape[d];
  const int64_t outputs = shape[0];
  weights.weight(name + ".weight", std::move(shape), Init::kaiming_uniform());
  if (bias) weights.weight(name + ".bias", {outputs}, Init::uniform(1 / std::sqrt(static_cast<double>(fan_in))));
}

}  // namespace

void RobustTokenAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "attention heads H");
  f("num_scales", num_scales, "scales K of the pooling: the token itself and dilations 1 to K - 1");
  f("temperature", temperature, "divides the logits of the scales");
  f("threshold", threshold, "of the loss: weights above threshold / N count");
  f("adl_weight", adl_weight, "factor of the loss");
  f("layers", layers, "layers whose losses are summed");
  f("host", host, "rvt (residual block with the convolutional mlp) or none (pooling and attention)");
  f("qkv_bias", qkv_bias, "bias of the in-projections");
  f("mlp_ratio", mlp_ratio, "hidden width of the mlp over D");
  f("layer_scale", layer_scale, "start of the factors gamma1 and gamma2 of the branches; null: none");
  f("norm_epsilon", norm_epsilon, "epsilon of the LayerNorms");
  f("bn_epsilon", bn_epsilon, "epsilon of the BatchNorms");
  f("bn_momentum", bn_momentum, "share of the batch in the updated running statistics");
  f("attn_drop", attn_drop, "dropout of the weights in training");
  f("proj_drop", proj_drop, "dropout of the attention's output in training");
  f("parity", parity, "the loss of the weights after dropout, as the official code");
}

void RobustTokenAttention::Config::validate() const {
  const char* id = "robust-token-attention";
  require(heads > 0 && width % heads == 0, id, "width to be a multiple of heads",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require(num_scales > 0, id, "num_scales > 0", std::to_string(num_scales));
  require(temperature > 0, id, "temperature > 0", std::to_string(temperature));
  require(threshold >= 0, id, "threshold >= 0", std::to_string(threshold));
  require(layers > 0, id, "layers > 0", std::to_string(layers));
  require(host == "rvt" || host == "none", id, "host 'rvt' or 'none'", "'" + host + "'");
  require(host == "rvt" || !layer_scale, id, "layer_scale with host 'rvt'", "host 'none'");
  require(hidden() > 0, id, "mlp_ratio with a hidden width > 0", std::to_string(mlp_ratio));
  require(norm_epsilon > 0 && bn_epsilon > 0, id, "norm_epsilon > 0 and bn_epsilon > 0",
          std::to_string(norm_epsilon) + " and " + std::to_string(bn_epsilon));
  require(bn_momentum >= 0 && bn_momentum <= 1, id, "bn_momentum in [0, 1]", std::to_string(bn_momentum));
  require_probability(id, "attn_drop", attn_drop);
  require_probability(id, "proj_drop", proj_drop);
}

Info RobustTokenAttention::info() {
  Info info;
  info.id = "robust-token-attention";
  info.family = "dense";
  info.title = "Attention behind token-aware average pooling, with a loss that keeps its rows apart";
  info.equation = "y = x + attention(norm(sum_d g_d mean of x at dilation d)) + mlp, g = softmax of two convolutions";
  info.paper = "Guo, Stutz and Schiele, 2023, Robustifying Token Attention for Vision Transformers";
  info.outputs = {{"tap_weights", "(B, 1, rows, columns, K): share of each scale"},
                  {"pooled", "(B, N, D): the tokens that attend"},
                  {"attn", "(B, heads, N, N): attention weights"},
                  {"similarity", "scalar: mean cosine of a row of the map and the mean row"}};
  for (const char* name : {"dilation_predictor.proj.1", "mlp.bn1", "mlp.bn2", "mlp.bn3"})
    for (const char* part : {"running_mean", "running_var"})
      info.outputs.push_back({std::string("buffer.") + name + "." + part, "updated statistics of a training step"});
  info.losses = {{"adl", "attention diversification: adl_weight similarity / (layers + 1e-6)"}};
  info.needs_grid = true;
  info.examples = {
      R"({"width": 8, "heads": 2, "num_scales": 3, "mlp_ratio": 1.5})",
      R"({"width": 8, "heads": 2, "num_scales": 2, "host": "none", "temperature": 0.5, "qkv_bias": false})",
      R"({"width": 8, "heads": 1, "num_scales": 1, "mlp_ratio": 1, "layer_scale": 0.5, "threshold": 1})"};
  info.golden.config = {{"dim", "width"},        {"num_heads", "heads"},         {"H", "@grid"},
                        {"W", "@grid"},          {"adl_threshold", "threshold"}, {"norm_eps", "norm_epsilon"},
                        {"bn_eps", "bn_epsilon"}};
  info.golden.outputs = {{"out", ""}, {"adl", "loss.adl"}};
  return info;
}

void RobustTokenAttention::declare(const Config& config, Declaration& weights) {
  const int64_t D = config.width, K = config.num_scales, F = config.hidden();
  const std::string predictor = "dilation_predictor.proj.";
  convolution(weights, predictor + "0", {K, D, 3, 3}, false);
  batch_norm(weights, predictor + "1", K);
  convolution(weights, predictor + "2", {K, K, 3, 3}, false);
  if (config.host == "rvt") weights.layer_norm("norm1", D);
  weights.linear("attn.qkv", D, 3 * D, config.qkv_bias);
  weights.linear("attn.proj", D, D);
  if (config.host != "rvt") return;
  weights.layer_norm("norm2", D);
  convolution(weights, "mlp.fc1", {F, D, 1, 1}, true);
  batch_norm(weights, "mlp.bn1", F);
  convolution(weights, "mlp.dwconv", {F, 1, 3, 3}, true);
  batch_norm(weights, "mlp.bn2", F);
  convolution(weights, "mlp.fc2", {D, F, 1, 1}, true);
  batch_norm(weights, "mlp.bn3", D);
  if (config.layer_scale) {
    weights.weight("gamma1", {D}, Init::constant(*config.layer_scale));
    weights.weight("gamma2", {D}, Init::constant(*config.layer_scale));
  }
}

}  // namespace regard
