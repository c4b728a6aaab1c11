#include "regard/nn/pooling/set_transformer.h"

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dropout.h"
#include "regard/nn/pooling/tokens.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using Config = SetTransformer::Config;
constexpr const char* id = "set-transformer";

/// The elements of one set a row. Those `shared` are learned points and what became of them: every shard has them all.
struct Set {
  at::Tensor x;        ///< (B, n, width)
  at::Tensor lengths;  ///< (B) int64 or undefined
  at::Tensor padded;   ///< (B, n) boolean or undefined
  bool shared = false;
};

at::Tensor zeroed(const at::Tensor& t, const at::Tensor& where) {
  return where.defined() ? t.masked_fill(where.unsqueeze(2), 0) : t;
}

/// A key mask and the scale of the full width; the attention over elements that lie on shards is the context's.
at::Tensor attend(const Config& config, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Set& keys,
                  bool wants_map, Context& context) {
  AttentionSpec spec;
  spec.scale = 1 / std::sqrt(static_cast<double>(config.inner()));
  AttentionArguments arguments;
  if (keys.lengths.defined()) {
    spec.keep = key() < capture("lengths", Type::integer, {batch()});
    arguments.named_captures["lengths"] = keys.lengths;
  }
  if (!keys.shared) {
    const at::Tensor o = context.attend(q, k, v, spec, arguments).o;
    if (wants_map) context.output("attn", attention_weights(context.attended()));
    return o;
  }
  arguments.path = context.path;
  return attention(q, k, v, spec, arguments).o;
}

/// MAB(Q, K): (B, n, W) for the elements of Q.
Set mab(const Config& config, const Weights& weights, const Set& queries, const Set& keys, Context& context,
        bool wants_map = false) {
  const at::Tensor q = weights.linear(queries.x, "fc_q");
  const at::Tensor mixed =
      attend(config, split_heads(q, config.heads), split_heads(weights.linear(keys.x, "fc_k"), config.heads),
             split_heads(weights.linear(keys.x, "fc_v"), config.heads), keys, wants_map, context);
  at::Tensor o = q + merge_heads(mixed);
  if (config.layer_norm) o = weights.layer_norm(o, "ln0", config.norm_epsilon);
  o = o + at::relu(weights.linear(o, "fc_o"));
  if (config.layer_norm) o = weights.layer_norm(o, "ln1", config.norm_epsilon);
  return {zeroed(o, queries.padded), queries.lengths, queries.padded, queries.shared};
}

/// Learned points (1, m, W), the same for every row of the batch.
Set learned(const at::Tensor& points, const at::Tensor& x) {
  return {points.expand_symint({x.sym_size(0), -1, -1}).to(x.scalar_type()), {}, {}, true};
}

Set elements_of(const Config& config, const at::Tensor& given, Context& context) {
  const bool all = config.include_prefix || !config.has("pma");
  if (given.dim() != 3 || (context.prefix > 0 && !all)) {
    const PoolTokens tokens(id, given, context, all);
    return {tokens.x, tokens.lengths, tokens.padded};
  }
  const at::Tensor padded = context.padding(given);
  return {zeroed(given, padded), context.input("lengths"), padded};
}

Set memory_of(const Config& config, const at::Tensor& x, const Context& context) {
  const at::Tensor memory = context.input("memory"), lengths = context.input("memory_lengths");
  if (!config.has("mab")) {
    require(!memory.defined() && !lengths.defined(), id, "memory only with a stage mab", "memory");
    return {};
  }
  const int64_t width = config.memory_width ? config.memory_width : config.width;
  if (!memory.defined() || memory.dim() != 3 || memory.sym_size(0) != x.sym_size(0) || memory.sym_size(2) != width)
    fail(id, "memory (B, N, " + std::to_string(width) + ") with the batch of x " + describe(x),
         memory.defined() ? describe(memory) : "none");
  const at::Tensor padded = context.padding(memory, lengths);
  return {zeroed(memory, padded), lengths, padded};
}

/// The stage of this number, applied to `now`.
Set run_stage(const Config& config, const Weights& weights, size_t stage, const Set& now, const Set& memory,
              Context& context) {
  const std::string &kind = config.stages[stage], name = config.prefix(stage);
  const Weights own = weights.under(name);
  if (kind == "sab") return mab(config, own.under("mab."), now, now, context);
  if (kind == "mab") return mab(config, own, now, memory, context);
  if (kind == "isab") {
    const Set seen = mab(config, own.under("mab0."), learned(own["I"], now.x), now, context);
    return mab(config, own.under("mab1."), now, seen, context);
  }
  if (kind == "pma") {
    Set pooled = mab(config, own.under("mab."), learned(own["S"], now.x), now, context, context.wants("attn"));
    if (now.padded.defined()) pooled.x = pooled.x.masked_fill(now.lengths.eq(0).unsqueeze(1).unsqueeze(2), 0);
    return pooled;
  }
  Set next = now;
  if (kind == "dropout") next.x = dropout(now.x, config.drop, context);
  if (kind == "linear") next.x = zeroed(weights.linear(now.x, name.substr(0, name.size() - 1)), now.padded);
  return next;
}

}  // namespace

at::Tensor SetTransformer::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                   Context& context) {
  if (context.input("cu_seqlens").defined())
    require(!config.has("isab") && !config.has("pma") && !config.has("mab"), id,
            "stages sab alone with cu_seqlens (learned points belong to one set)", "others");
  Set now = elements_of(config, given, context);
  if (TORCH_GUARD_OR_FALSE(context.tokens(now.x).sym_eq(0))) fail(id, "at least one element", describe(given));
  const Set memory = memory_of(config, now.x, context);
  for (size_t i = 0; i < config.stages.size(); ++i) {
    now = run_stage(config, weights, i, now, memory, context);
    const std::string output = "stage" + std::to_string(i);
    if (context.wants(output)) context.output(output, now.x);
  }
  const at::Tensor lengths = context.input("lengths");
  if (!config.has("pma")) return now.x;
  // What stages behind the pma made of an empty set is dropped.
  if (lengths.defined()) {
    const int64_t skipped = config.include_prefix ? 0 : context.prefix;
    now.x = now.x.masked_fill(lengths.le(skipped).unsqueeze(1).unsqueeze(2), 0);
  }
  return config.keep_seeds ? now.x : now.x.flatten(1);
}

REGARD_MECHANISM(SetTransformer)

}  // namespace regard
