#include "regard/nn/dense/softmax_attention.h"

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/rotary.h"
#include "regard/nn/dense/softmax_attention_spec.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = SoftmaxAttention::Config;
constexpr const char* id = "softmax-attention";

struct Projected {
  at::Tensor q, k, v;  ///< (B, H, M, Dh) (B, Hk, N, Dh) (B, Hk, N, Dv)
};

/// One product for all three where queries and keys come from the same tokens, two or three where not.
Projected project(const Config& config, const Weights& weights, const at::Tensor& x, const at::Tensor& source) {
  const int64_t q_rows = config.heads * config.key_width(), k_rows = config.key_heads() * config.key_width(),
                v_rows = config.key_heads() * config.values_width();
  const at::Tensor bias = config.qkv_bias ? weights["in_proj_bias"] : at::Tensor();
  const auto part = [&](int64_t begin, int64_t rows) {
    return bias.defined() ? bias.slice(0, begin, begin + rows) : at::Tensor();
  };
  at::Tensor q, k, v;
  if (config.separate()) {
    q = at::linear(x, weights["q_proj_weight"], part(0, q_rows));
    k = at::linear(source, weights["k_proj_weight"], part(q_rows, k_rows));
    v = at::linear(source, weights["v_proj_weight"], part(q_rows + k_rows, v_rows));
  } else {
    const at::Tensor& all = weights["in_proj_weight"];
    if (x.is_same(source)) {
      const auto parts = at::linear(x, all, bias).split_with_sizes({q_rows, k_rows, v_rows}, -1);
      q = parts[0], k = parts[1], v = parts[2];
    } else {
      q = at::linear(x, all.slice(0, 0, q_rows), part(0, q_rows));
      const auto parts = at::linear(source, all.slice(0, q_rows), part(q_rows, k_rows + v_rows))
                             .split_with_sizes({k_rows, v_rows}, -1);
      k = parts[0], v = parts[1];
    }
  }
  return {split_heads(q, config.heads), split_heads(k, config.key_heads()), split_heads(v, config.key_heads())};
}

at::Tensor zeroed(const at::Tensor& tokens, const at::Tensor& where) {
  return where.defined() ? tokens.masked_fill(where.unsqueeze(2), 0) : tokens;
}

/// The tokens that keys and values are made of, and which of them exist.
///
/// Hidden tokens are zeroed before the projections: their keys get no weight, but NaN in them would still reach the
/// gradients of the projections, as 0 * NaN.
struct Source {
  at::Tensor tokens;  ///< (B, N, Dm)
  Visibility visibility;
};

Source source_of(const Config& config, const at::Tensor& x, const Context& context) {
  const at::Tensor memory = context.input("memory"), memory_lengths = context.input("memory_lengths");
  Source source;
  Visibility& seen = source.visibility;
  seen.lengths = context.input("lengths");
  seen.key_hidden = context.input("key_hidden");
  if (memory.defined()) {
    if (memory.dim() != 3 || memory.sym_size(2) != config.source_width() || memory.sym_size(0) != x.sym_size(0))
      fail(id, "memory (B, N, " + std::to_string(config.source_width()) + ") with the batch of x " + describe(x),
           describe(memory));
    seen.key_lengths = memory_lengths;
    source.tokens = memory;
    source.tokens = zeroed(memory, context.padding(memory, memory_lengths));
  } else {
    if (config.separate())
      fail(id, "input memory (B, N, " + std::to_string(config.source_width()) + "), since memory_width is not width",
           "none");
    require(!memory_lengths.defined(), id, "memory with memory_lengths", "memory_lengths alone");
    seen.key_lengths = seen.lengths;
    source.tokens = x;
  }
  if (seen.key_hidden.defined()) {
    const at::Tensor& hidden = seen.key_hidden;
    if (hidden.dim() != 2 || hidden.scalar_type() != at::kBool || hidden.sym_size(0) != x.sym_size(0) ||
        hidden.sym_size(1) != source.tokens.sym_size(1))
      fail(id, "key_hidden (B, N) bool (true = not attended) for keys of " + describe(source.tokens), describe(hidden));
    source.tokens = zeroed(source.tokens, hidden);
  }
  return source;
}

/// The positions that the call gives, or those of the tokens: counted from 0 in the memory, by the context in x.
at::Tensor positions_of(const char* name, const Context& context, const at::Tensor& x, const c10::SymInt& offset) {
  const at::Tensor given = context.input(name);
  const c10::SymInt length = x.sym_size(2);
  if (!given.defined() && offset == 0 && std::string_view(name) == "positions")
    return context.positions(x.transpose(1, 2));
  if (!given.defined()) return context.indices(x.transpose(1, 2)) + at::Scalar(offset);
  const bool rank = given.dim() == 1 || (given.dim() == 2 && given.sym_size(0) == x.sym_size(0));
  if (!rank || given.sym_size(-1) != length)
    fail(id, std::string(name) + " (L) or (B, L), L = " + describe(length), describe(given));
  return given;
}

/// `own` (B, M) or undefined: where the queries lie if the call does not say it.
void turn(const Config& config, const Context& context, const c10::SymInt& offset, const at::Tensor& own,
          Projected& parts) {
  const bool cross = context.input("memory").defined();
  const auto turned = [&](const at::Tensor& t, const at::Tensor& positions) {
    return rotate(t, positions, config.rope_theta, config.turned_width(), config.rope_interleaved);
  };
  const bool given = context.input("positions").defined() || !own.defined();
  parts.q = turned(parts.q, given ? positions_of("positions", context, parts.q, offset) : own);
  parts.k = turned(parts.k, positions_of(cross ? "memory_positions" : "positions", context, parts.k, 0));
}

}  // namespace

at::Tensor SoftmaxAttention::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                     Context& context) {
  const bool positioned = context.input("positions").defined() || context.input("memory_positions").defined();
  require(config.rope || !positioned, id, "positions only with rope", "positions");
  at::Tensor padded;
  if (context.input("lengths").defined()) padded = context.padding(given);
  const at::Tensor x = padded.defined() ? zeroed(given, padded) : given;
  const Source source = source_of(config, x, context);

  Projected parts = project(config, weights, x, source.tokens);
  if (config.qk_norm) {
    // Under autocast a norm gives float32; the products run in the type of the projections.
    parts.q = weights.layer_norm(parts.q, "q_norm", config.norm_epsilon).to(parts.v.scalar_type());
    parts.k = weights.layer_norm(parts.k, "k_norm", config.norm_epsilon).to(parts.v.scalar_type());
  }
  const bool cross = context.input("memory").defined();
  if (!cross) {
    if (config.rope) turn(config, context, 0, {}, parts);
    parts.k = context.append("k", parts.k);
    parts.v = context.append("v", parts.v);
  }
  auto [spec, arguments, query_positions] = prepare(config, weights, context, source.visibility, parts.q, parts.k);
  if (cross && config.rope) turn(config, context, arguments.query_offset, query_positions, parts);
  if (config.attn_drop > 0 && context.training) {
    spec.dropout = config.attn_drop;
    arguments.seed = context.stream("attention");
  }

  const AttentionOutput mixed = context.attend(parts.q, parts.k, parts.v, spec, arguments);
  if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  context.publish("significance", [&] { return attention_column_sums(context.attended()); });
  if (context.wants("lse")) context.output("lse", mixed.lse);
  at::Tensor y = merge_heads(mixed.o);
  if (config.output_norm) y = weights.layer_norm(y, "norm", config.norm_epsilon);
  y = dropout(weights.linear(y, "out_proj"), config.proj_drop, context);
  return zeroed(y, padded);
}

/// Keys after their rotation. A count of all keys, which a step cannot know, must not enter the weights.
std::vector<CacheStream> SoftmaxAttention::caches(const Config& config) {
  const bool counts = (config.normalizer == "sigmoid" && !config.sigmoid_bias) || config.divisor == "keys" ||
                      config.divisor == "sqrt_keys" || (config.divisor == "auto" && config.normalizer == "relu");
  if (!config.causal || config.separate() || counts || config.window_right > 0) return {};
  return {CacheStream::append("k", {config.key_heads(), config.key_width()}),
          CacheStream::append("v", {config.key_heads(), config.values_width()})};
}

void SoftmaxAttention::Config::fields(Fields& f) {
  f("width", width, "model width D, required");
  f("heads", heads, "query heads H");
  f("kv_heads", kv_heads, "key heads Hk, a divisor of heads; 0: heads");
  f("head_width", head_width, "width Dh of queries and keys; 0: width / heads");
  f("value_width", value_width, "width Dv of values; 0: head_width");
  f("memory_width", memory_width, "width of memory's tokens; 0: width");
  f("qkv_bias", qkv_bias, "bias of the in-projections");
  f("out_bias", out_bias, "bias of the output projection");
  f("qk_norm", qk_norm, "LayerNorm over each head's queries and keys");
  f("output_norm", output_norm, "LayerNorm before the output projection");
  f("norm_epsilon", norm_epsilon, "epsilon of these norms");
  f("scale", scale, "factor of the scores; null: head_width^-1/2");
  f("softcap", softcap, "c of c tanh(s / c), before bias and masks; 0: none");
  f("alibi", alibi, "bias -slope_h |i - j| with the slopes of the paper, or of the input slopes");
  f("rope", rope, "rotary position embedding of queries and keys");
  f("rope_theta", rope_theta, "base of its frequencies");
  f("rope_width", rope_width, "channels of each head that it turns; 0: head_width");
  f("rope_interleaved", rope_interleaved, "pairs (2t, 2t + 1) instead of (t, t + rope_width / 2)");
  f("causal", causal, "query i sees keys j <= i");
  f("window_left", window_left, "query i sees keys j >= i - window_left; -1: unbounded");
  f("window_right", window_right, "query i sees keys j <= i + window_right; -1: unbounded");
  f("alignment", alignment, "with memory: bottom_right (the last query lies on the last key) or top_left");
  f("normalizer", normalizer, "softmax, softmax1, sigmoid, relu or none");
  f("sinks", sinks, "learned logits a head that enter the sum of softmax; 0: none");
  f("sigmoid_bias", sigmoid_bias, "added to the scores before the sigmoid; null: -log(number of keys)");
  f("divisor", divisor, "of relu and none: one, keys, sqrt_keys (none only), visible; auto: relu keys, none one");
  f("attn_drop", attn_drop, "dropout of the weights in training");
  f("proj_drop", proj_drop, "dropout of the output in training");
}

REGARD_MECHANISM(SoftmaxAttention)

}  // namespace regard
