#include "regard/nn/linear/linear_attention_features.h"

#include <algorithm>
#include <cmath>

namespace regard {
namespace {

/// x'_i x'_{i-j} for j = 1 .. order, x' = [relu(x), -relu(x)].
at::Tensor dpfp(const at::Tensor& x, int64_t order) {
  const at::Tensor positive = at::relu(x), both = at::cat({positive, -positive}, -1);
  std::vector<at::Tensor> parts;
  for (int64_t j = 1; j <= order; ++j) parts.push_back(both * at::roll(both, {j}, {-1}));
  return at::cat(parts, -1);
}

/// [1, x / Dk^(1/4), x_i^2 / sqrt(2 Dk), x_i x_j / sqrt(Dk) for i < j].
at::Tensor taylor2(const at::Tensor& x, int64_t Dk) {
  const double root = std::sqrt(static_cast<double>(Dk));
  const at::Tensor pairs = at::triu_indices(Dk, Dk, 1, x.options().dtype(at::kLong).requires_grad(std::nullopt));
  const at::Tensor mixed = x.index_select(-1, pairs[0]) * x.index_select(-1, pairs[1]);
  return at::cat({at::ones_like(x.slice(-1, 0, 1)), x / std::sqrt(root), x * x / (std::sqrt(2.0) * root), mixed / root},
                 -1);
}

}  // namespace

const std::vector<std::string>& feature_maps() {
  static const std::vector<std::string> list = {"elu1", "relu", "identity", "silu",     "softmax",
                                                "dpfp", "t2r",  "hadamard", "hedgehog", "taylor2"};
  return list;
}

bool one_signed(const std::string& map) {
  // dpfp keeps fla's sign of the second half, whose products with the first are negative.
  return map != "identity" && map != "silu" && map != "hadamard" && map != "dpfp";
}

int64_t feature_width(const LinearAttention::Config& config, int64_t Dk) {
  if (config.feature_map == "dpfp") return 2 * Dk * config.dpfp_order;
  if (config.feature_map == "hedgehog") return 2 * Dk;
  if (config.feature_map == "taylor2") return 1 + 2 * Dk + Dk * (Dk - 1) / 2;
  return Dk;
}

void declare_features(const LinearAttention::Config& config, Declaration& weights) {
  const int64_t Dk = config.keys_width();
  for (const std::string prefix : {"feature_map_q.", "feature_map_k."}) {
    if (config.feature_map == "t2r") weights.linear(prefix + "layer", Dk, Dk, false);
    if (config.feature_map == "hadamard") {
      weights.linear(prefix + "layer1", Dk, Dk, config.feature_bias);
      weights.linear(prefix + "layer2", Dk, Dk, config.feature_bias);
    }
    if (config.feature_map == "hedgehog")
      weights.linear(prefix + "layer", Dk, Dk, config.feature_bias, Init::identity(), Init::zeros());
  }
}

at::Tensor features_of(const LinearAttention::Config& config, const Weights& weights, const at::Tensor& x, char which) {
  const std::string &map = config.feature_map, prefix = std::string("feature_map_") + which + ".";
  // As at::elu(x) + 1, whose backward torch traces with other strides than it runs with.
  if (map == "elu1") return at::where(x > 0, x + 1, at::exp(at::clamp_max(x, 0)));
  if (map == "relu") return at::relu(x);
  if (map == "silu") return at::silu(x);
  if (map == "softmax") return at::softmax(x, -1);
  if (map == "dpfp") return dpfp(x, config.dpfp_order);
  if (map == "t2r") return at::relu(weights.linear(x, prefix + "layer"));
  if (map == "hadamard") return weights.linear(x, prefix + "layer1") * weights.linear(x, prefix + "layer2");
  if (map == "taylor2") return taylor2(x, config.keys_width());
  if (map == "hedgehog") {
    const at::Tensor y = weights.linear(x, prefix + "layer") * 2;
    return at::softmax(at::cat({y, -y}, -1), -1);
  }
  return x;
}

}  // namespace regard
