#include "regard/nn/dense/relational_attention_relations.h"

#include <cmath>

#include "regard/nn/dense/rotary.h"
#include "regard/nn/shapes.h"

namespace regard::relational {
namespace {

at::Tensor activated(const std::string& name, const at::Tensor& s, const at::Tensor& hidden_keys) {
  if (name == "relu") return at::relu(s);
  if (name == "sigmoid") return at::sigmoid(s);
  if (name == "tanh") return at::tanh(s);
  if (name == "silu") return at::silu(s);
  if (name == "gelu") return at::gelu(s, "tanh");
  if (name == "softmax") return at::softmax(hidden_keys.defined() ? s.masked_fill(hidden_keys, -INFINITY) : s, -1);
  return s;
}

at::Tensor split(const Relations& relations, const at::Tensor& t) {
  return t.sym_size(1) == relations.count ? t : split_heads(t.squeeze(1), relations.count);
}

/// Which pairs exist.
void hide(const Call& call, AttentionSpec& spec, AttentionArguments& arguments) {
  const auto keep = [&spec](const Expr& seen) { spec.keep = spec.keep.defined() ? spec.keep & seen : seen; };
  if (call.config.causal) keep(masks::causal());
  if (const at::Tensor lengths = call.context.input("lengths"); lengths.defined()) {
    keep(key() < capture("lengths", Type::integer, {batch()}));
    arguments.named_captures["lengths"] = lengths;
  }
  if (const at::Tensor hidden = call.context.input("hidden"); hidden.defined()) {
    keep(~capture("hidden", Type::boolean, {row(), column()}));
    arguments.named_captures["hidden"] = hidden;
  }
}

/// exp(s - log sum_j exp(s)): a softmax over all keys inside a pair's expression, from a pass of its own.
Expr normalized(const Call& call, const Relations& relations, const Expr& s, const Expr& head,
                AttentionArguments& arguments) {
  const std::string name = "relation_lse";
  if (!arguments.named_captures.count(name)) {
    AttentionSpec spec;
    AttentionArguments own;
    spec.scale = inverse_root(relations.width);
    if (const at::Tensor lengths = call.context.input("lengths"); lengths.defined()) {
      spec.keep = key() < capture("lengths", Type::integer, {batch()});
      own.named_captures["lengths"] = lengths;
    }
    const at::Tensor k = split(relations, relations.k);
    const at::Tensor lse = call.context.companion(split(relations, relations.q), k, k.slice(-1, 0, 1), spec, own).lse;
    // A row without keys: exp(s + inf) would be a weight of 0 times inf.
    arguments.named_captures[name] = lse.masked_fill(at::isneginf(lse), 0);
  }
  return exp(s - capture(name, Type::real, {batch(), head, row()}));
}

}  // namespace

double inverse_root(int64_t width) { return 1 / std::sqrt(static_cast<double>(width)); }

Expr activated(const std::string& name, const Expr& s) {
  if (name == "relu") return max(s, Expr(0.0));
  if (name == "sigmoid") return sigmoid(s);
  if (name == "tanh") return tanh(s);
  if (name == "silu") return s * sigmoid(s);
  // sqrt(2 / pi) (s + 0.044715 s^3): the tanh form
  if (name == "gelu") return 0.5 * s * (1.0 + tanh(0.7978845608028654 * (s + 0.044715 * s * s * s)));
  return s;
}

at::Tensor Call::heads(const std::string& name, int64_t count) const {
  return split_heads(weights.linear(x, name), count);
}

at::Tensor Call::turned(const at::Tensor& t) const {
  return config.rope ? rotate(t, context.positions(x), config.rope_theta, t.sym_size(-1).guard_int(__FILE__, __LINE__),
                              /*interleaved=*/true)
                     : t;
}

AttentionSpec Call::spec(AttentionArguments& arguments) const {
  AttentionSpec spec;
  spec.scale = inverse_root(config.head_width());
  hide(*this, spec, arguments);
  if (config.attn_drop > 0 && context.training) {
    spec.dropout = config.attn_drop;
    arguments.seed = context.stream("attention");
  }
  return spec;
}

Relations relate(const Call& call, AttentionArguments& arguments) {
  const Config& config = call.config;
  Relations result;
  const bool per_head = config.form == "disrca";
  const std::string of_keys = config.symmetric ? "relational_attention.wq_rel" : "relational_attention.wk_rel";
  result.count = per_head ? config.relational_heads : config.relation_count();
  result.width = per_head ? config.head_width() : config.relations_width();
  result.q = call.heads("relational_attention.wq_rel", per_head ? config.relational_heads : 1);
  result.k = call.context.append("relation_k", call.heads(of_keys, per_head ? config.key_heads() : 1));
  if (per_head) result.k = result.k.repeat_interleave(config.relational_heads / config.key_heads(), 1);
  arguments.named_operands["relation"] = {result.q, result.k};
  for (int64_t l = 0; l < (per_head ? 1 : result.count); ++l) {
    const Expr dots = per_head ? dot("relation") : dot("relation", l * result.width, (l + 1) * result.width, 0);
    const Expr s = inverse_root(result.width) * dots;
    result.values.push_back(config.activation == "softmax"
                                ? normalized(call, result, s, per_head ? head() : Expr(l), arguments)
                                : activated(config.activation, s));
  }
  return result;
}

at::Tensor Relations::map(const Call& call) const {
  const at::Tensor s = at::matmul(split(*this, q), split(*this, k).transpose(-2, -1)) * inverse_root(width);
  const at::Tensor padded = call.context.padding(call.x);
  at::Tensor hidden = padded.defined() ? padded.unsqueeze(1).unsqueeze(1) : padded;
  if (const at::Tensor ids = call.context.segments(call.x); ids.defined()) hidden = ids.unsqueeze(1) != ids;
  return activated(call.config.activation, s, hidden).permute({0, 2, 3, 1});
}

}  // namespace regard::relational
