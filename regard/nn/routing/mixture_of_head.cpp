#include "regard/nn/routing/mixture_of_head.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/rotary.h"
#include "regard/nn/dropout.h"
#include "regard/nn/routing/mixture_of_head_router.h"
#include "regard/nn/shapes.h"
#include "regard/ops/block_index.h"

namespace regard {
namespace {

using Config = MixtureOfHead::Config;
constexpr const char* id = "mixture-of-head";

struct Projected {
  at::Tensor q, k, v;  ///< (B, H, N, Dh) (B, Hk, M, Dh) (B, Hk, M, Dh)
};

Projected project(const Config& config, const Weights& weights, const at::Tensor& x, const at::Tensor& source) {
  const int64_t rows = config.heads * config.key_width(), k_rows = config.key_heads() * config.key_width();
  at::Tensor q, k, v;
  if (config.separate) {
    q = weights.linear(x, "q_proj"), k = weights.linear(source, "k_proj"), v = weights.linear(source, "v_proj");
  } else if (x.is_same(source)) {
    const auto parts = weights.linear(x, "qkv").split_with_sizes({rows, k_rows, k_rows}, -1);
    q = parts[0], k = parts[1], v = parts[2];
  } else {
    const at::Tensor bias = config.qkv_bias ? weights["qkv.bias"] : at::Tensor();
    const auto part = [&](const at::Tensor& tokens, int64_t begin, int64_t end) {
      return at::linear(tokens, weights["qkv.weight"].slice(0, begin, end),
                        bias.defined() ? bias.slice(0, begin, end) : bias);
    };
    q = part(x, 0, rows);
    const auto parts = part(source, rows, rows + 2 * k_rows).split(k_rows, -1);
    k = parts[0], v = parts[1];
  }
  return {split_heads(q, config.heads), split_heads(k, config.key_heads()), split_heads(v, config.key_heads())};
}

/// How many keys a query's sequence has, to broadcast with (B, H, N, Dh).
at::Tensor keys_of(const at::Tensor& x, const at::Tensor& source, Context& context) {
  const bool cross = !x.is_same(source);
  const at::Tensor lengths = context.input(cross ? "memory_lengths" : "lengths");
  if (lengths.defined()) return lengths.clamp_min(1).to(x.scalar_type()).view({-1, 1, 1, 1});
  if (const at::Tensor bounds = context.cu_seqlens(); bounds.defined())
    return bounds.diff().index_select(0, context.segments(x)).to(x.scalar_type()).view({1, 1, -1, 1});
  return at::scalar_tensor(at::Scalar(context.tokens(source)), x.options()).clamp_min(1);
}

/// Cosine attention; the attention's own scale is then 1.
void normalize(const Weights& weights, const at::Tensor& keys, Projected& parts) {
  const auto unit = [](const at::Tensor& t) { return t * t.square().sum(-1, true).clamp_min(1e-24).rsqrt(); };
  const at::Tensor sharpness = at::softplus(weights["temperature"]) * keys.log();
  parts.q = ((unit(parts.q) + weights["query_embedding"]) * sharpness).to(parts.v.scalar_type());
  parts.k = unit(parts.k);
}

AttentionSpec spec_of(const Config& config, Context& context, bool cross, AttentionArguments& arguments) {
  AttentionSpec spec;
  if (config.causal) spec.keep = masks::causal();
  const char* name = cross ? "memory_lengths" : "lengths";
  if (const at::Tensor lengths = context.input(name); lengths.defined()) {
    const Expr exists = key() < capture("key_lengths", Type::integer, {batch()});
    spec.keep = spec.keep.defined() ? spec.keep & exists : exists;
    arguments.named_captures["key_lengths"] = lengths;
  }
  if (config.cosine) spec.scale = 1.0;
  if (const at::Tensor bias = context.input("bias"); bias.defined()) {
    if (bias.dim() != 2 && !(bias.dim() == 3 && bias.sym_size(0) == config.heads))
      fail(id, "bias (N, M) or (" + std::to_string(config.heads) + ", N, M)", describe(bias));
    const Expr added = bias.dim() == 2 ? capture("bias", Type::real, {row(), column()})
                                       : capture("bias", Type::real, {head(), row(), column()});
    spec.score = scale() * dot() + added;
    arguments.named_captures["bias"] = bias;
  }
  if (config.attn_drop > 0 && context.training) {
    spec.dropout = config.attn_drop;
    arguments.seed = context.stream("attention");
  }
  return spec;
}

/// Routed heads of the tokens that chose them alone, (B, N, K, Dh). The keys of all heads lie in one row, a block a
/// head; each (token, choice) is a query that keeps one block.
at::Tensor chosen_heads(const Config& config, const Projected& parts, const at::Tensor& chosen, Context& context) {
  const int64_t K = config.routed_heads, group = config.heads / config.key_heads();
  const int64_t keys = std::max<int64_t>(1, parts.k.sym_size(2).guard_int(__FILE__, __LINE__));
  const at::Tensor heads = chosen + config.shared_heads;                                    // (B, N, K)
  const at::Tensor q = at::take_along_dim(parts.q.transpose(1, 2), heads.unsqueeze(3), 2);  // (B, N, K, Dh)
  BlockIndex index;
  index.key_block = keys;
  index.blocks = heads.floor_divide(group).flatten(1).unsqueeze(1).unsqueeze(3);  // (B, 1, N K, 1)
  index.trusted = true;
  AttentionSpec spec;
  AttentionArguments arguments;
  arguments.path = context.path;
  if (config.cosine) spec.scale = 1.0;
  const Expr place = key() % Expr(keys);
  if (config.causal) spec.keep = floor_div(query(), Expr(K)) >= place;
  const at::Tensor lengths = context.input(context.input("memory").defined() ? "memory_lengths" : "lengths");
  if (lengths.defined()) {
    const Expr exists = place < capture("key_lengths", Type::integer, {batch()});
    spec.keep = spec.keep.defined() ? spec.keep & exists : exists;
    arguments.named_captures["key_lengths"] = lengths;
  }
  const auto row = [](const at::Tensor& t) { return t.flatten(1, 2).unsqueeze(1); };
  const at::Tensor o = attention_blocks(row(q), row(parts.k), row(parts.v), index, spec, arguments).o;
  return o.squeeze(1).unflatten(1, {-1, K});
}

/// (B, N, H, Dh), zero where a head was not chosen.
at::Tensor gathered(const Config& config, const Projected& parts, const at::Tensor& chosen, Context& context) {
  context.whole_only(id, "heads gathered token by token");
  for (const auto& name : context.wanted) require(!name.starts_with("tap."), id, "execution 'dense' with taps", name);
  require(context.edits.empty() && !context.wants("attn") && !context.input("bias").defined(), id,
          "execution 'dense' with edits, bias and maps", "'gathered'");
  const at::Tensor routed = chosen_heads(config, parts, chosen, context);
  const at::Tensor index = chosen.unsqueeze(3).expand_symint(routed.sym_sizes());
  std::vector<c10::SymInt> shape = routed.sym_sizes().vec();
  shape[2] = config.choices();
  at::Tensor o = at::zeros_symint(shape, routed.options()).scatter(2, index, routed);
  if (config.shared_heads == 0) return o;
  const auto shared = [&](const at::Tensor& t) {
    return t.repeat_interleave(config.heads / config.key_heads(), 1).slice(1, 0, config.shared_heads);
  };
  AttentionArguments arguments;
  const AttentionSpec spec = spec_of(config, context, context.input("memory").defined(), arguments);
  const at::Tensor q = parts.q.slice(1, 0, config.shared_heads);
  const at::Tensor common = context.attend(q, shared(parts.k), shared(parts.v), spec, arguments).o;
  return at::cat({common.transpose(1, 2), o}, 2);
}

}  // namespace

at::Tensor MixtureOfHead::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                  Context& context) {
  const at::Tensor padded = context.padding(given), memory = context.input("memory"),
                   memory_lengths = context.input("memory_lengths");
  const auto zeroed = [](const at::Tensor& t, const at::Tensor& where) {
    return where.defined() ? t.masked_fill(where.unsqueeze(2), 0) : t;
  };
  const bool cross = memory.defined();
  require(!cross || !(config.causal || config.rope), id, "no memory with causal or rope", "memory");
  require(cross || !memory_lengths.defined(), id, "memory with memory_lengths", "memory_lengths alone");
  if (cross && (memory.dim() != 3 || memory.sym_size(2) != config.width || memory.sym_size(0) != given.sym_size(0)))
    fail(id, "memory (B, M, " + std::to_string(config.width) + ") with the batch of x " + describe(given),
         describe(memory));
  const at::Tensor x = zeroed(given, padded);
  const at::Tensor source = cross ? zeroed(memory, context.padding(memory, memory_lengths)) : x;

  Projected parts = project(config, weights, x, source);
  if (config.qk_norm) {
    // Under autocast a norm gives float32; the products run in the type of the projections.
    parts.q = weights.layer_norm(parts.q, "q_norm", config.norm_epsilon).to(parts.v.scalar_type());
    parts.k = weights.layer_norm(parts.k, "k_norm", config.norm_epsilon).to(parts.v.scalar_type());
  }
  const mixture_of_head::Routing routing = mixture_of_head::route(config, weights, x, parts.q, context);
  if (config.cosine) normalize(weights, keys_of(x, source, context), parts);
  if (config.rope) {
    const at::Tensor positions = context.positions(x);
    for (at::Tensor* t : {&parts.q, &parts.k})
      *t = rotate(*t, positions, config.rope_theta, config.key_width(), config.rope_interleaved);
  }
  at::Tensor o;  // (B, N, H, Dh)
  if (config.gathered()) {
    o = gathered(config, parts, routing.chosen, context);
  } else {
    if (!cross) {
      parts.k = context.append("k", parts.k);
      parts.v = context.append("v", parts.v);
    }
    AttentionArguments arguments;
    const AttentionSpec spec = spec_of(config, context, cross, arguments);
    o = context.attend(parts.q, parts.k, parts.v, spec, arguments).o.transpose(1, 2);
    if (context.wants("attn")) context.output("attn", attention_weights(context.attended()));
  }
  if (context.wants("gates")) context.output("gates", routing.gates);
  if (context.wants("topk_indices")) {
    require(routing.chosen.defined(), id, "routed_heads >= 1 with topk_indices", "0");
    context.output("topk_indices", routing.chosen);
  }
  const at::Tensor mixed = (o * routing.gates.to(o.scalar_type()).unsqueeze(3)).flatten(2);
  const at::Tensor y = weights.linear(mixed, config.separate ? "o_proj" : "proj");
  return zeroed(dropout(y, config.proj_drop, context), padded);
}

/// Keys after their rotation; cosine's logarithm of the number of keys, which a step cannot know, has no cache.
std::vector<CacheStream> MixtureOfHead::caches(const Config& config) {
  if (!config.causal || config.cosine || config.gathered()) return {};
  const std::vector<int64_t> entry = {config.key_heads(), config.key_width()};
  return {CacheStream::append("k", entry), CacheStream::append("v", entry)};
}

REGARD_MECHANISM(MixtureOfHead)

}  // namespace regard
