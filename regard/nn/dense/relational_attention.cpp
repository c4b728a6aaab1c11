#include "regard/nn/dense/relational_attention.h"

#include "regard/base/error.h"
#include "regard/nn/attention_weights.h"
#include "regard/nn/dense/relational_attention_relations.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

using namespace relational;
constexpr const char* id = "relational-attention";

at::Tensor self_part(const Call& call, const at::Tensor& shared_keys) {
  const Config& config = call.config;
  const at::Tensor q = call.turned(call.heads("self_attention.wq", config.self_heads));
  at::Tensor k = shared_keys;
  if (!k.defined())
    k = call.context.append("self_k", call.turned(call.heads("self_attention.wk", config.self_key_heads())));
  const at::Tensor v = call.context.append("self_v", call.heads("self_attention.wv", config.self_key_heads()));
  AttentionArguments arguments;
  const AttentionSpec spec = call.spec(arguments);
  const at::Tensor o = call.context.attend(q, k, v, spec, arguments).o;
  if (call.context.wants("self_attn")) call.context.output("self_attn", attention_weights(call.context.attended()));
  return call.weights.linear(merge_heads(o), "self_attention.wo");
}

/// The projected table of relative symbols, (Hr, 2 L + 1, Dh).
at::Tensor projected_table(const Call& call) {
  const Config& config = call.config;
  const at::Tensor table =
      call.weights.linear(call.weights["symbols.rel_pos_enc.rel_pos_embeddings"], "relational_attention.wv");
  const at::Tensor heads = table.unflatten(1, {config.key_heads(), -1}).transpose(0, 1);
  return heads.repeat_interleave(config.relational_heads / config.key_heads(), 0);
}

at::Tensor symbols_of(const Call& call) {
  const at::Tensor given = call.context.input("symbols");
  if (call.config.symbols != "input") {
    require(!given.defined(), id, "no input symbols unless symbols is 'input'", "'" + call.config.symbols + "'");
    return call.config.relative()
               ? at::Tensor()
               : retrieve_symbols(call.config, call.weights.under("symbols."), call.x, call.context, id);
  }
  if (!given.defined() || given.sym_sizes() != call.x.sym_sizes())
    fail(id, "input symbols of the shape of x " + describe(call.x), given.defined() ? describe(given) : "none");
  const at::Tensor padded = call.context.padding(call.x);
  return padded.defined() ? given.masked_fill(padded.unsqueeze(2), 0) : given;
}

at::Tensor relational_part(const Call& call, const at::Tensor& symbols, const at::Tensor& k) {
  const Config& config = call.config;
  const bool rca = config.form == "rca";
  const at::Tensor q = call.turned(
      call.heads(rca ? "relational_attention.wq" : "relational_attention.wq_attn", config.relational_heads));
  AttentionArguments arguments;
  Relations relations;
  if (!rca) relations = relate(call, arguments);
  AttentionSpec spec = call.spec(arguments);
  if (config.form == "relational") {
    for (const Expr& value : relations.values) spec.pair_outputs.push_back({value, {}, 1});
  } else if (config.form == "disrca") {
    spec.weight = relations.values.front();
  } else if (config.activation != "softmax") {
    spec.normalizer.kind = Normalizer::Kind::identity;
    spec.score = activated(config.activation, scale() * dot());
  }
  at::Tensor v;
  if (config.relative()) {
    const Expr distance = key() - query(), most(config.max_distance);
    spec.pair_outputs.push_back({Expr(1.0), max(min(distance, most), -most) + most, config.table_rows()});
    v = at::zeros_like(k.slice(-1, 0, 1));
  } else {
    v = call.context.append("v",
                            split_heads(call.weights.linear(symbols, "relational_attention.wv"), config.key_heads()));
  }
  const AttentionOutput out = call.context.attend(q, k, v, spec, arguments);
  if (call.context.wants("rel_attn")) call.context.output("rel_attn", attention_weights(call.context.attended()));
  if (call.context.wants("relations")) {
    require(!rca, id, "relations only where the form has them", "'rca'");
    call.context.output("relations", relations.map(call));
  }
  const auto type = q.scalar_type();
  const int64_t averaged = config.form == "relational" ? relations.count : 0;
  at::Tensor o = config.relative() ? at::matmul(out.pairs.slice(-1, averaged).to(type), projected_table(call)) : out.o;
  if (averaged) {
    const at::Tensor mean = out.pairs.slice(-1, 0, averaged).to(type);  // (B, H, M, R)
    o = o + at::matmul(mean, call.weights["relational_attention.wr"].transpose(1, 2));
  }
  return call.weights.linear(merge_heads(o), "relational_attention.wo");
}

}  // namespace

at::Tensor RelationalAttention::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                        Context& context) {
  const at::Tensor padded = context.padding(given);
  const at::Tensor x = padded.defined() ? given.masked_fill(padded.unsqueeze(2), 0) : given;
  const Call call{config, weights, x, context};
  std::vector<at::Tensor> parts;
  at::Tensor symbols, keys;
  if (config.relational_heads) {
    symbols = symbols_of(call);
    if (context.wants("symbols")) {
      require(symbols.defined(), id, "symbols of tokens, when they are asked for", "relative ones, of pairs");
      context.output("symbols", symbols);
    }
    const char* name = config.form == "rca" ? "relational_attention.wk" : "relational_attention.wk_attn";
    const at::Tensor own = call.turned(call.heads(name, config.key_heads()));
    keys = context.append("k", own);
  }
  if (config.self_heads) parts.push_back(self_part(call, config.share_attention ? keys : at::Tensor()));
  if (config.relational_heads) parts.push_back(relational_part(call, symbols, keys));
  const at::Tensor y = dropout(parts.size() == 1 ? parts[0] : at::cat(parts, -1), config.proj_drop, context);
  return padded.defined() ? y.masked_fill(padded.unsqueeze(2), 0) : y;
}

std::vector<CacheStream> RelationalAttention::caches(const Config& config) {
  if (!config.causal) return {};
  std::vector<CacheStream> streams;
  if (config.relational_heads) {
    streams.push_back(CacheStream::append("k", {config.key_heads(), config.keys_width()}));
    if (config.form == "relational")
      streams.push_back(CacheStream::append("relation_k", {1, config.relation_count() * config.relations_width()}));
    if (config.form == "disrca")
      streams.push_back(CacheStream::append("relation_k", {config.key_heads(), config.head_width()}));
    if (!config.relative()) streams.push_back(CacheStream::append("v", {config.key_heads(), config.head_width()}));
    for (const CacheStream& stream : symbol_caches(config, config.width)) streams.push_back(stream);
  }
  if (config.self_heads) {
    const std::vector<int64_t> entry = {config.self_key_heads(), config.head_width()};
    if (!config.share_attention) streams.push_back(CacheStream::append("self_k", entry));
    streams.push_back(CacheStream::append("self_v", entry));
  }
  return streams;
}

REGARD_MECHANISM(RelationalAttention)

}  // namespace regard
