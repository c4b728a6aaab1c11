#include "moving_average.h"

#include <regard/base/error.h>
#include <regard/nn/shapes.h>
#include <regard/ops/attention.h>

using namespace regard;

void MovingAverage::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "blocks of channels, each with its own decay");
}

void MovingAverage::Config::validate() const {
  require(heads > 0 && width % heads == 0, "moving-average", "width to be a multiple of heads",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
}

Info MovingAverage::info() {
  Info info;
  info.id = "moving-average";
  info.family = "examples";
  info.role = Role::mixer;
  info.title = "Causal moving average with learned decay";
  info.equation = "y_i = Wo sum_{j <= i} softmax_j(-r_h (i - j)) x_j";
  info.paper = "none: an example";
  info.inputs = {{"lengths", "(B) int64: tokens of each row; the rest is padding"}};
  info.examples = {R"({"width": 8, "heads": 2})"};
  return info;
}

void MovingAverage::declare(const Config& config, Declaration& weights) {
  weights.weight("log_rate", {config.heads}, Init::constant(-1));
  weights.linear("out_proj", config.width, config.width, /*bias=*/false);
}

at::Tensor MovingAverage::forward(const Config& config, const Weights& weights, const at::Tensor& given, Context& context) {
  AttentionSpec spec;
  spec.score = -capture("rate", Type::real, {head()}) * cast(query() - key(), Type::real);
  spec.keep = masks::causal();
  AttentionArguments arguments;
  arguments.path = context.path;

  at::Tensor x = given, padded;
  const at::Tensor lengths = context.input("lengths");
  if (lengths.defined()) {
    padded = padding(lengths, x.sym_size(1)).unsqueeze(2);
    x = x.masked_fill(padded, 0);
    spec.keep = spec.keep & masks::lengths("lengths");
    arguments.captures.push_back(lengths);
  }
  arguments.captures.push_back(weights["log_rate"].exp());  // sorted by name: lengths, rate

  const at::Tensor values = split_heads(x, config.heads);
  const at::Tensor nothing = at::zeros_like(values.slice(-1, 0, 1));  // scores read positions, not queries and keys
  const at::Tensor y = weights.linear(merge_heads(attention(nothing, nothing, values, spec, arguments).o), "out_proj");
  return padded.defined() ? y.masked_fill(padded, 0) : y;
}

REGARD_MECHANISM(MovingAverage)
