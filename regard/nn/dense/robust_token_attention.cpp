#include "regard/nn/dense/robust_token_attention.h"

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/robust_token_attention_loss.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = RobustTokenAttention::Config;
constexpr const char* id = "robust-token-attention";
constexpr double layers_epsilon = 1e-6;

/// (B, N, D) on the grid: (B, D, Hg, Wg), and back.
at::Tensor to_map(const at::Tensor& tokens, const Context& context) {
  const at::Tensor channels = tokens.transpose(1, 2);
  return context.grid.size() == 1 ? channels.unsqueeze(2) : channels.unflatten_symint(2, context.grid);
}
at::Tensor to_tokens(const at::Tensor& map) { return map.flatten(2).transpose(1, 2); }

/// BatchNorm2d of `map`. In training its statistics are the batch's, and the running ones are returned, not changed.
at::Tensor batch_norm(const Config& config, const Weights& weights, const std::string& name, const at::Tensor& map,
                      Context& context) {
  at::Tensor mean = weights[name + ".running_mean"], variance = weights[name + ".running_var"];
  at::Tensor new_mean = mean, new_variance = variance;
  if (context.training) {
    const c10::SymInt count = map.sym_size(0) * map.sym_size(2) * map.sym_size(3);
    mean = map.mean({0, 2, 3});
    variance = map.var({0, 2, 3}, /*unbiased=*/false);
    const at::Tensor n = at::scalar_tensor(at::Scalar(count), map.options());
    const at::Tensor unbiased = variance.detach() * (n / (n - 1).clamp_min(1));
    new_mean = at::lerp(new_mean, mean.detach().to(new_mean.scalar_type()), config.bn_momentum);
    new_variance = at::lerp(new_variance, unbiased.to(new_variance.scalar_type()), config.bn_momentum);
  }
  const std::pair<const char*, at::Tensor> updated[] = {{".running_mean", new_mean}, {".running_var", new_variance}};
  for (const auto& [part, value] : updated)
    if (const std::string output = "buffer." + name + part; context.wants(output))
      context.output(output, value.clone());
  const auto channels = [](const at::Tensor& t) { return t.view({1, -1, 1, 1}); };
  const at::Tensor scale = weights[name + ".weight"] * (variance + config.bn_epsilon).rsqrt();
  return ((map - channels(mean)) * channels(scale) + channels(weights[name + ".bias"])).to(map.scalar_type());
}

/// The bias is added apart: under vmap, torch's convolution mistakes its shape where the map is not batched.
at::Tensor convolve(const Weights& weights, const std::string& name, const at::Tensor& map, int64_t padding,
                    int64_t groups = 1) {
  const at::Tensor y = at::conv2d(map, weights[name + ".weight"], /*bias=*/std::nullopt, /*stride=*/1, padding,
                                  /*dilation=*/1, groups);
  const std::string bias = name + ".bias";
  return weights.has(bias) ? y + weights[bias].view({1, -1, 1, 1}) : y;
}

/// Mean of the 9 entries at offsets {-d, 0, d}^2, zeros outside counted: 3 rows, then 3 columns.
at::Tensor dilated_mean(const at::Tensor& map, int64_t d) {
  const c10::SymInt rows = map.sym_size(2), columns = map.sym_size(3);
  const at::Tensor tall = at::constant_pad_nd(map, {0, 0, d, d});
  const at::Tensor summed =
      tall.narrow_symint(2, 0, rows) + tall.narrow_symint(2, d, rows) + tall.narrow_symint(2, 2 * d, rows);
  const at::Tensor wide = at::constant_pad_nd(summed, {d, d});
  return (wide.narrow_symint(3, 0, columns) + wide.narrow_symint(3, d, columns) +
          wide.narrow_symint(3, 2 * d, columns)) /
         9;
}

/// pooled = sum_d g_d S_d of the grid's tokens.
at::Tensor pool(const Config& config, const Weights& weights, const at::Tensor& tokens, Context& context) {
  const at::Tensor map = to_map(tokens, context);
  const at::Tensor hidden = batch_norm(config, weights, "dilation_predictor.proj.1",
                                       convolve(weights, "dilation_predictor.proj.0", map, 1), context);
  const at::Tensor g = (convolve(weights, "dilation_predictor.proj.2", hidden, 1) / config.temperature).softmax(1);
  if (context.wants("tap_weights")) context.output("tap_weights", g.permute({0, 2, 3, 1}).unsqueeze(1));
  at::Tensor pooled = g.narrow(1, 0, 1) * map;
  for (int64_t d = 1; d < config.num_scales; ++d) pooled = pooled + g.narrow(1, d, 1) * dilated_mean(map, d);
  return to_tokens(pooled);
}

at::Tensor attend(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
  const auto parts = weights.linear(x, "attn.qkv").chunk(3, -1);
  AttentionSpec spec;
  AttentionArguments arguments;
  if (config.attn_drop > 0 && context.training) {
    spec.dropout = config.attn_drop;
    arguments.seed = context.stream("attention");
  }
  const at::Tensor o = context
                           .attend(split_heads(parts[0], config.heads), split_heads(parts[1], config.heads),
                                   split_heads(parts[2], config.heads), spec, arguments)
                           .o;
  if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  const auto similarity = [&] {
    Attending call = context.attended();
    if (!config.parity) call.spec.dropout = 0, call.arguments.seed = at::Tensor();
    return attention_similarity(call, config.threshold);
  };
  if (context.wants("similarity")) context.output("similarity", similarity());
  context.loss("adl", [&] {
    return similarity() * (config.adl_weight / (static_cast<double>(config.layers) + layers_epsilon));
  });
  return dropout(weights.linear(merge_heads(o), "attn.proj"), config.proj_drop, context);
}

at::Tensor mlp(const Config& config, const Weights& weights, const at::Tensor& tokens, Context& context) {
  const auto norm = [&](const std::string& name, const at::Tensor& map) {
    return batch_norm(config, weights, name, map, context);
  };
  at::Tensor z = at::gelu(norm("mlp.bn1", convolve(weights, "mlp.fc1", to_map(tokens, context), 0)));
  z = at::gelu(norm("mlp.bn2", convolve(weights, "mlp.dwconv", z, 1, config.hidden())));
  return to_tokens(norm("mlp.bn3", convolve(weights, "mlp.fc2", z, 0)));
}

}  // namespace

at::Tensor RobustTokenAttention::forward(const Config& config, const Weights& weights, const at::Tensor& x,
                                         Context& context) {
  context.whole_only(id, "a convolution over the grid");
  const bool block = config.host == "rvt";
  if (TORCH_GUARD_OR_FALSE(x.sym_size(1).sym_eq(context.prefix))) fail(id, "at least one token on the grid", "none");
  require(context.grid.size() <= 2, id, "a grid of one or two dimensions", std::to_string(context.grid.size()));
  at::Tensor pooled = pool(config, weights, x.slice(1, context.prefix), context);
  if (context.prefix > 0) pooled = at::cat({x.slice(1, 0, context.prefix), pooled}, 1);
  if (context.wants("pooled")) context.output("pooled", pooled);
  if (!block) return attend(config, weights, pooled, context);

  const auto scaled = [&](const at::Tensor& t, const char* gamma) {
    return config.layer_scale ? t * weights[gamma] : t;
  };
  const at::Tensor h =
      x + scaled(attend(config, weights, weights.layer_norm(pooled, "norm1", config.norm_epsilon), context), "gamma1");
  const at::Tensor patches = weights.layer_norm(h.slice(1, context.prefix), "norm2", config.norm_epsilon);
  const at::Tensor y = h.slice(1, context.prefix) + scaled(mlp(config, weights, patches, context), "gamma2");
  return context.prefix > 0 ? at::cat({h.slice(1, 0, context.prefix), y}, 1) : y;
}

REGARD_MECHANISM(RobustTokenAttention)

}  // namespace regard
