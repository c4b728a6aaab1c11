#include "regard/nn/dense/softmax_attention_spec.h"

#include <map>

#include "regard/base/error.h"
#include "regard/nn/dense/alibi.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = SoftmaxAttention::Config;
constexpr const char* id = "softmax-attention";

/// Collects the expressions and the tensors they capture.
class Builder {
 public:
  Builder(const Config& config, const Context& context, const at::Tensor& q, const at::Tensor& k)
      : config_(config), context_(context), q_(q), k_(k) {}

  /// The element of `tensor` that belongs to a pair: it is broadcast against (B, H, M, N) as torch does, but read by
  /// indices, so that its expansion is never stored.
  Expr pair_capture(const std::string& name, Type type, const at::Tensor& tensor) {
    const c10::SymInt full[] = {q_.sym_size(0), q_.sym_size(1), q_.sym_size(2), k_.sym_size(2)};
    const Expr local[] = {batch(), head(), row(), column()};
    const int64_t skipped = 4 - tensor.dim();
    std::vector<Expr> indices;
    bool fits = skipped >= 0;
    for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
      const c10::SymInt size = tensor.sym_size(d);
      fits = size == full[skipped + d] || size == 1;
      // One token here may be one of many on all shards: an entry of its own, not a broadcast one.
      const bool broadcast = size == 1 && !(skipped + d >= 2 && size == full[skipped + d]);
      indices.push_back(broadcast ? Expr(0) : local[skipped + d]);
    }
    if (!fits)
      fail(id, name + " to broadcast to (B, H, M, N) = " + describe(c10::SymIntArrayRef(full)), describe(tensor));
    return hold(name, type, tensor, std::move(indices));
  }

  Expr hold(const std::string& name, Type type, const at::Tensor& tensor, std::vector<Expr> indices) {
    captured_[name] = tensor;
    return capture(name, type, std::move(indices));
  }
  void hold(const std::string& name, const at::Tensor& tensor) { captured_[name] = tensor; }

  void hide(const Expr& keep) { keep_ = keep_.defined() ? keep_ & keep : keep; }

  Expr score(const at::Tensor& key_lengths) {
    Expr s = scale() * dot();
    if (config_.softcap > 0) s = Expr(config_.softcap) * tanh(s / Expr(config_.softcap));
    const at::Tensor bias = context_.input("bias");
    if (bias.defined()) {
      if (!at::isFloatingType(bias.scalar_type())) fail(id, "bias of a floating type", describe(bias));
      s = s + pair_capture("bias", Type::real, bias);
    }
    const at::Tensor slopes = context_.input("slopes");
    if (slopes.defined() && !(slopes.dim() == 1 && slopes.sym_size(0) == config_.heads))
      fail(id, "slopes (" + std::to_string(config_.heads) + ",)", describe(slopes));
    if (config_.alibi || slopes.defined()) {
      const at::Tensor used = slopes.defined() ? slopes : alibi_slopes(config_.heads, q_.options());
      s = s - hold("slopes", Type::real, used, {head()}) * cast(abs(query() - key()), Type::real);
    }
    const Expr count = number_of_keys(key_lengths);
    if (config_.normalizer == "sigmoid") s = s + (config_.sigmoid_bias ? Expr(*config_.sigmoid_bias) : -log(count));
    // relu(s) / n = relu(s / n)
    const bool per_key = config_.divisor == "keys" || (config_.divisor == "auto" && config_.normalizer == "relu");
    if (per_key) s = s / count;
    if (config_.divisor == "sqrt_keys") s = s / sqrt(count);
    return s;
  }

  Expr keep(const Visibility& visibility) {
    if (config_.causal) hide(masks::causal());
    if (config_.window_left >= 0 || config_.window_right >= 0)
      hide(masks::window(config_.window_left, config_.window_right));
    if (visibility.key_lengths.defined()) {
      hold("lengths", visibility.key_lengths);
      hide(key() < capture("lengths", Type::integer, {batch()}));
    }
    if (visibility.key_hidden.defined())
      hide(~hold("key_hidden", Type::boolean, visibility.key_hidden, {batch(), column()}));
    const at::Tensor hidden = context_.input("hidden");
    if (hidden.defined()) {
      if (hidden.scalar_type() != at::kBool) fail(id, "hidden of type bool (true = not attended)", describe(hidden));
      hide(~pair_capture("hidden", Type::boolean, hidden));
    }
    hide_other_segments();
    return keep_;
  }

  const std::map<std::string, at::Tensor>& captured() const { return captured_; }

 private:
  /// N, or the row's own length: padding does not count, nor do other packed sequences.
  Expr number_of_keys(const at::Tensor& lengths) {
    if (context_.cu_seqlens().defined()) {  // packed: the keys of the query's own sequence
      const at::Tensor bounds = context_.cu_seqlens(), segments = context_.segments(q_.transpose(1, 2));
      const at::Tensor counts = at::diff(bounds).index_select(0, segments);
      return cast(hold("packed_keys", Type::integer, counts, {row()}), Type::real);
    }
    if (!lengths.defined()) return cast(keys(), Type::real);
    const Expr length = hold("lengths", Type::integer, lengths, {batch()});
    return cast(max(min(length, keys()), Expr(1)), Type::real);
  }

  void hide_other_segments() {
    const at::Tensor segments = context_.input("segments"), of_memory = context_.input("memory_segments");
    if (!segments.defined() && !of_memory.defined()) return;
    const bool cross = context_.input("memory").defined();
    if (!segments.defined() || cross != of_memory.defined())
      fail(id, cross ? "segments and memory_segments together" : "segments alone without memory",
           segments.defined() ? (cross ? "segments alone" : "both") : "memory_segments alone");
    const at::Tensor& other = cross ? of_memory : segments;
    require_tokens("segments", segments, q_.sym_size(2));
    require_tokens("memory_segments", other, k_.sym_size(2));
    hold("segments", segments);
    hold("memory_segments", other);
    hide(masks::documents("segments", "memory_segments"));
  }
  void require_tokens(const char* name, const at::Tensor& ids, const c10::SymInt& tokens) const {
    if (ids.dim() == 2 && c10::isIntegralType(ids.scalar_type(), false) && ids.sym_size(0) == q_.sym_size(0) &&
        ids.sym_size(1) == tokens)
      return;
    fail(id, std::string(name) + " (B, L), integer, L = " + describe(tokens), describe(ids));
  }

  const Config& config_;
  const Context& context_;
  const at::Tensor &q_, &k_;
  Expr keep_;
  std::map<std::string, at::Tensor> captured_;
};

Normalizer normalizer_of(const Config& config) {
  using Kind = Normalizer::Kind;
  Normalizer normalizer;
  normalizer.sinks = config.sinks > 0 || config.normalizer == "softmax1";
  if (config.normalizer == "sigmoid") normalizer.kind = Kind::sigmoid;
  if (config.normalizer == "relu") normalizer.kind = Kind::relu;
  if (config.normalizer == "none") normalizer.kind = Kind::identity;
  if (config.divisor == "visible") normalizer.divisor = Normalizer::Divisor::kept;
  return normalizer;
}

/// Where the queries lie among the keys when the last query of each row lies on its last key, padding not counted:
/// i + (keys of row b) - (queries of row b), (B, M) int64.
at::Tensor bottom_right_positions(const Visibility& visibility, const Context& context, const at::Tensor& q,
                                  const at::Tensor& k) {
  const auto integers = q.options().dtype(at::kLong);
  const auto own = [&](const at::Tensor& lengths, const at::Tensor& tokens) {
    const at::Tensor all = at::scalar_tensor(at::Scalar(context.tokens(tokens.transpose(1, 2))), integers);
    return lengths.defined() ? at::minimum(lengths.to(at::kLong), all) : all;
  };
  const at::Tensor shift = own(visibility.key_lengths, k) - own(visibility.lengths, q);
  return context.indices(q.transpose(1, 2)).unsqueeze(0) + shift.unsqueeze(1);
}

/// Whether anything but RoPE's default asks where the queries lie among the keys.
bool positional(const Config& config, const Context& context) {
  return config.causal || config.window_left >= 0 || config.window_right >= 0 || config.alibi ||
         context.input("slopes").defined();
}

}  // namespace

PreparedAttention prepare(const Config& config, const Weights& weights, const Context& context,
                          const Visibility& visibility, const at::Tensor& q, const at::Tensor& k) {
  PreparedAttention prepared;
  Builder builder(config, context, q, k);
  AttentionSpec& spec = prepared.spec;
  spec.score = builder.score(visibility.key_lengths);
  spec.keep = builder.keep(visibility);
  spec.normalizer = normalizer_of(config);
  spec.scale = config.scale;
  AttentionArguments& arguments = prepared.arguments;
  if (context.input("memory").defined() && config.alignment == "bottom_right" && positional(config, context)) {
    if (visibility.lengths.defined() || visibility.key_lengths.defined()) {
      prepared.query_positions = bottom_right_positions(visibility, context, q, k);
      builder.hold("query_positions", prepared.query_positions);
      spec.positions.query.tensor = "query_positions";
    } else {
      arguments.query_offset = context.tokens(k.transpose(1, 2)) - context.tokens(q.transpose(1, 2));
    }
  }
  arguments.named_captures = builder.captured();
  // softmax1 adds exp(0) to the sum: a sink whose logit is 0.
  if (config.sinks > 0) arguments.sinks = weights["sinks"];
  if (config.normalizer == "softmax1") arguments.sinks = at::zeros({config.heads}, q.options());
  return prepared;
}

}  // namespace regard
