// What a linear attention layer is made of: options, their checks, weights, cache.

#include <algorithm>
#include <cmath>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/nn/linear/linear_attention_features.h"

namespace regard {
namespace {

using Config = LinearAttention::Config;
constexpr const char* id = "linear-attention";

void one_of(const char* field, const std::string& value, const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), value) == names.end())
    fail(id, std::string(field) + " to be one of " + quoted_list(names), "'" + value + "'" + suggestion(value, names));
}

}  // namespace

int64_t Config::features() const { return feature_width(*this, keys_width()); }
bool Config::normalized() const { return normalize.value_or(!delta && one_signed(feature_map)); }

std::string Config::projection(char which) const {
  if (names == "fla") return std::string(1, which) + "_proj";
  return which == 'q'   ? "query_projection"
         : which == 'k' ? "key_projection"
         : which == 'v' ? "value_projection"
                        : "out_projection";
}

void Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key heads Hk, a divisor of heads; 0: heads");
  f("key_width", key_width, "width Dk of a head's queries and keys; 0: width / heads");
  f("value_width", value_width, "width Dv of a head's values; 0: width / heads");
  f("memory_width", memory_width, "width of memory's tokens; 0: width");
  f("names", names, "whose names the weights have: fla | idiap");
  f("qkv_bias", qkv_bias, "biases of the in-projections");
  f("out_bias", out_bias, "bias of the output projection");
  f("causal", causal, "query i sees keys j <= i");
  f("feature_map", feature_map, "elu1 | relu | identity | silu | softmax | dpfp | t2r | hadamard | hedgehog | taylor2");
  f("dpfp_order", dpfp_order, "rolls of dpfp");
  f("feature_bias", feature_bias, "biases of hadamard and hedgehog");
  f("norm_q", norm_q, "phi(q) divided by its sum + 1e-4");
  f("norm_k", norm_k, "phi(k) divided by its sum + 1e-4");
  f("unit_keys", unit_keys, "phi(q) and phi(k) of length 1");
  f("normalize", normalize, "divide by s <phi(q), z> + eps; null: where phi has one sign, without delta");
  f("allow_signed", allow_signed, "normalize also where the sum may be near 0");
  f("eps", eps, "added to the normalizer");
  f("scale", scale, "factor s of the products; null: F^-1/2 of the features' width F, and 1 with normalize");
  f("decay", decay, "none | fixed | scalar | key_vector");
  f("decay_form", decay_form, "sigmoid | exponential (scalar only)");
  f("gate_divisor", gate_divisor, "divides the log-sigmoid of a decay");
  f("gate_rank", gate_rank, "rank of key_vector's projection");
  f("delta", delta, "the delta rule: a write replaces what its key reads");
  f("beta_range", beta_range, "largest strength of a write, in (0, 2]");
  f("output_norm", output_norm, "RMSNorm of each head's output");
  f("output_gate", output_gate, "RMSNorm of each head's output, times swish(g_proj x)");
  f("norm_epsilon", norm_epsilon, "epsilon of the RMSNorm");
  f("chunk", chunk, "tokens of a chunk; 0: 64, and 128 where nothing decays");
}

void Config::validate() const {
  require(heads > 0 && key_heads() > 0 && heads % key_heads() == 0, id, "kv_heads to divide heads",
          std::to_string(kv_heads) + ", heads " + std::to_string(heads));
  require((key_width > 0 && value_width > 0) || width % heads == 0, id,
          "width to be a multiple of heads (or key_width and value_width)",
          "width " + std::to_string(width) + ", heads " + std::to_string(heads));
  require(key_width >= 0 && value_width >= 0 && memory_width >= 0 && chunk >= 0, id, "widths and chunk >= 0",
          "a negative one");
  one_of("names", names, {"fla", "idiap"});
  one_of("feature_map", feature_map, feature_maps());
  one_of("decay", decay, {"none", "fixed", "scalar", "key_vector"});
  one_of("decay_form", decay_form, {"sigmoid", "exponential"});
  require(dpfp_order > 0, id, "dpfp_order > 0", std::to_string(dpfp_order));
  require(decay_form == "sigmoid" || decay == "scalar", id, "decay scalar with decay_form exponential",
          "'" + decay + "'");
  require(gate_rank > 0, id, "gate_rank > 0", std::to_string(gate_rank));
  require(gate_divisor > 0, id, "gate_divisor > 0", std::to_string(gate_divisor));
  require(eps > 0, id, "eps > 0", std::to_string(eps));
  require(norm_epsilon > 0, id, "norm_epsilon > 0", std::to_string(norm_epsilon));
  require(beta_range > 0 && beta_range <= 2, id, "beta_range in (0, 2]", std::to_string(beta_range));
  if (scale) require(std::isfinite(*scale), id, "a finite scale", std::to_string(*scale));
  require(causal || (decay == "none" && !delta), id, "causal with a decay or delta, which need an order",
          "causal = false");
  require(!causal || memory_width == 0 || memory_width == width, id, "causal = false with a memory_width",
          "causal = true");
  require(!delta || !normalized(), id, "normalize false with delta", "normalize true");
  require(!normalized() || one_signed(feature_map) || allow_signed, id,
          "a feature map of one sign with normalize (or allow_signed)", "'" + feature_map + "'");
  require(!output_norm || !output_gate, id, "output_norm or output_gate, which norms too", "both");
}

Info LinearAttention::info() {
  Info info;
  info.id = id;
  info.family = "linear";
  info.title = "Linear attention: kernelized, gated, delta rule";
  info.equation = "S_t = diag(a_t) S_{t-1} + phi(k_t) u_t^T, o_t = s S_t^T phi(q_t) / (s <phi(q_t), z_t> + eps)";
  info.paper =
      "Katharopoulos et al., 2020, Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention";
  info.inputs = {{"lengths", "(B) int64: tokens of each row; the rest is padding"},
                 {"memory", "(B, N, memory_width): tokens of the keys and values; not causal"},
                 {"memory_lengths", "(B) int64: its tokens of each row"}};
  info.outputs = {{"attn", "(B, H, M, N): what each value weighs"}};
  info.examples = {R"({"width": 8, "heads": 2})",
                   R"({"width": 8, "heads": 2, "causal": false, "names": "idiap", "qkv_bias": true, "out_bias": true})",
                   R"({"width": 8, "heads": 4, "kv_heads": 2, "key_width": 3, "feature_map": "hedgehog", )"
                   R"("normalize": false, "output_norm": true})",
                   R"({"width": 8, "heads": 2, "feature_map": "identity", "decay": "key_vector", "gate_rank": 3, )"
                   R"("key_width": 2, "output_gate": true, "chunk": 3})",
                   R"({"width": 8, "heads": 2, "feature_map": "silu", "unit_keys": true, "delta": true, )"
                   R"("decay": "scalar", "decay_form": "exponential", "output_gate": true, "chunk": 4})",
                   R"({"width": 8, "heads": 2, "kv_heads": 1, "feature_map": "taylor2", "decay": "fixed"})"};
  info.golden.excuse = "they hold q, k, v of the operation regard.linear_attention, which the tests of it compare";
  return info;
}

void LinearAttention::declare(const Config& c, Declaration& weights) {
  const int64_t Hk = c.key_heads(), Dk = c.keys_width(), values = c.heads * c.values_width();
  weights.linear(c.projection('q'), c.width, c.heads * Dk, c.qkv_bias);
  weights.linear(c.projection('k'), c.source_width(), Hk * Dk, c.qkv_bias);
  weights.linear(c.projection('v'), c.source_width(), Hk * c.values_width(), c.qkv_bias);
  declare_features(c, weights);
  if (c.decay == "key_vector") {
    weights.linear("gk_proj.0", c.width, c.gate_rank, false);
    weights.linear("gk_proj.1", c.gate_rank, Hk * c.features());
  } else if (c.decay == "scalar" && c.decay_form == "sigmoid") {
    weights.linear("gk_proj", c.width, Hk);
  } else if (c.decay == "scalar") {
    weights.linear("a_proj", c.width, Hk, false);
    weights.weight("A_log", {Hk}, Init::zeros());
    // softplus(dt_bias) = 0.01: in the middle of Mamba's [0.001, 0.1], on a scale of powers.
    weights.weight("dt_bias", {Hk}, Init::constant(std::log(std::expm1(0.01))));
  }
  if (c.delta) weights.linear("b_proj", c.width, Hk, false);
  if (c.output_gate) weights.linear("g_proj", c.width, values, false);
  if (c.output_norm || c.output_gate) weights.weight(c.norm_name(), {c.values_width()}, Init::ones());
  weights.linear(c.projection('o'), values, c.width, c.out_bias);
}

std::vector<CacheStream> LinearAttention::caches(const Config& config) {
  if (!config.causal) return {};
  std::vector<CacheStream> streams = {
      CacheStream::state("S", {config.key_heads(), config.features(), config.values_width()})};
  if (config.normalized()) streams.push_back(CacheStream::state("z", {config.key_heads(), config.features()}));
  return streams;
}

}  // namespace regard
