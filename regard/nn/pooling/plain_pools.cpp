#include "regard/nn/pooling/plain_pools.h"

#include <ATen/OpMathType.h>

#include <limits>

#include "regard/base/error.h"
#include "regard/nn/pooling/tokens.h"

namespace regard {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

const char* const width_doc = "model width D, required";
const char* const prefix_doc = "pool the prefix tokens (class, registers) too";

Info pool_info(const char* id, const char* title, const char* equation, const char* paper) {
  Info info;
  info.id = id;
  info.family = "pooling";
  info.role = Role::pool;
  info.title = title;
  info.equation = equation;
  info.paper = paper;
  info.inputs = {{"lengths", "(B) int64: tokens of each row, prefix included; the rest is padding"}};
  info.takes_maps = true;
  info.examples = {R"({"width": 8})"};
  return info;
}

/// The scalar of `name`: the learned weight in x's dtype, or the configuration's number.
at::Tensor scalar(const Weights& weights, const char* name, double fixed, const at::Tensor& x) {
  return weights.has(name) ? weights[name].to(x.scalar_type()) : at::scalar_tensor(fixed, x.options());
}

/// Powers and exponentials of half-precision features are taken in float32.
at::Tensor widened(const at::Tensor& x) { return x.to(at::toOpMathType(x.scalar_type())); }

}  // namespace

// ---- class-token ---------------------------------------------------------------------------------

void ClassToken::Config::fields(Fields& f) { f("width", width, width_doc); }
void ClassToken::Config::validate() const {}

Info ClassToken::info() {
  Info info =
      pool_info("class-token", "The class token", "y = x_0", "Dosovitskiy et al., 2020, An Image is Worth 16x16 Words");
  info.needs_prefix = true;
  info.takes_maps = false;
  return info;
}
void ClassToken::declare(const Config&, Declaration&) {}

at::Tensor ClassToken::forward(const Config&, const Weights&, const at::Tensor& x, Context& context) {
  const PoolTokens tokens("class-token", x, context, /*include_prefix=*/true);
  return tokens.finish(context.token(tokens.x, 0));
}

// ---- mean ----------------------------------------------------------------------------------------

void MeanPool::Config::fields(Fields& f) {
  f("width", width, width_doc);
  f("include_prefix", include_prefix, prefix_doc);
}
void MeanPool::Config::validate() const {}

Info MeanPool::info() {
  return pool_info("mean", "Global average pooling", "y = (1/N) sum_n x_n", "Lin et al., 2013, Network in Network");
}
void MeanPool::declare(const Config&, Declaration&) {}

at::Tensor MeanPool::forward(const Config& config, const Weights&, const at::Tensor& x, Context& context) {
  const PoolTokens tokens("mean", x, context, config.include_prefix);
  return tokens.mean(tokens.x);
}

// ---- max -----------------------------------------------------------------------------------------

Info MaxPool::info() {
  return pool_info("max", "Global max pooling", "y_d = max_n x_nd",
                   "Oquab et al., 2015, Is Object Localization for Free?");
}
void MaxPool::declare(const Config&, Declaration&) {}

at::Tensor MaxPool::forward(const Config& config, const Weights&, const at::Tensor& x, Context& context) {
  const PoolTokens tokens("max", x, context, config.include_prefix);
  return tokens.finish(tokens.greatest(tokens.x));
}

// ---- generalized-mean ----------------------------------------------------------------------------

void GeneralizedMeanPool::Config::fields(Fields& f) {
  f("width", width, width_doc);
  f("include_prefix", include_prefix, prefix_doc);
  f("p", p, "the power, or where a learned one starts; not 0");
  f("learned", learned, "p is a weight");
  f("epsilon", epsilon, "entries below it count as epsilon");
}
void GeneralizedMeanPool::Config::validate() const {
  require(p != 0, "generalized-mean", "p other than 0", "0");
  require(epsilon > 0, "generalized-mean", "epsilon > 0", std::to_string(epsilon));
}

Info GeneralizedMeanPool::info() {
  Info info =
      pool_info("generalized-mean", "Generalized-mean pooling (GeM)", "y_d = ((1/N) sum_n max(x_nd, epsilon)^p)^(1/p)",
                "Radenovic et al., 2017, Fine-tuning CNN Image Retrieval with No Human Annotation");
  info.examples = {R"({"width": 8})", R"({"width": 8, "p": 2.0, "learned": false})"};
  return info;
}
void GeneralizedMeanPool::declare(const Config& config, Declaration& weights) {
  if (config.learned) weights.weight("p", {1}, Init::constant(config.p));
}

at::Tensor GeneralizedMeanPool::forward(const Config& config, const Weights& weights, const at::Tensor& x,
                                        Context& context) {
  const PoolTokens tokens("generalized-mean", widened(x), context, config.include_prefix);
  const at::Tensor p = scalar(weights, "p", config.p, tokens.x);
  // A row without tokens takes powers of epsilon, never of 0, whose root has no finite gradient.
  const at::Tensor powers = tokens.x.clamp_min(config.epsilon).pow(p);
  const at::Tensor mean = context.total(tokens.filled(powers, 0).sum(1)) / tokens.count();
  return tokens.finish(mean.pow(p.reciprocal())).to(x.scalar_type());
}

// ---- log-sum-exp ---------------------------------------------------------------------------------

void LogSumExpPool::Config::fields(Fields& f) {
  f("width", width, width_doc);
  f("include_prefix", include_prefix, prefix_doc);
  f("r", r, "sharpness, or where a learned one starts; not 0");
  f("learned", learned, "r is a weight");
}
void LogSumExpPool::Config::validate() const { require(r != 0, "log-sum-exp", "r other than 0", "0"); }

Info LogSumExpPool::info() {
  Info info = pool_info("log-sum-exp", "Log-sum-exp pooling", "y_d = (1/r) log((1/N) sum_n exp(r x_nd))",
                        "Pinheiro & Collobert, 2015, From Image-level to Pixel-level Labeling");
  info.examples = {R"({"width": 8})", R"({"width": 8, "r": 10.0, "learned": true})"};
  return info;
}
void LogSumExpPool::declare(const Config& config, Declaration& weights) {
  if (config.learned) weights.weight("r", {1}, Init::constant(config.r));
}

at::Tensor LogSumExpPool::forward(const Config& config, const Weights& weights, const at::Tensor& x, Context& context) {
  const PoolTokens tokens("log-sum-exp", widened(x), context, config.include_prefix);
  const at::Tensor r = scalar(weights, "r", config.r, tokens.x);
  const at::Tensor own = tokens.filled(tokens.x * r, -infinity).logsumexp(1);  // takes the maximum out itself
  const at::Tensor top = context.greatest(own.detach());                       // so does the sum over shards
  const at::Tensor finite = at::where(at::isfinite(top), top, at::zeros({}, top.options()));
  const at::Tensor total = context.total((own - finite).exp()).log() + finite;
  return tokens.finish((total - tokens.count().log()) / r).to(x.scalar_type());
}

REGARD_MECHANISM(ClassToken)
REGARD_MECHANISM(MeanPool)
REGARD_MECHANISM(MaxPool)
REGARD_MECHANISM(GeneralizedMeanPool)
REGARD_MECHANISM(LogSumExpPool)

}  // namespace regard
