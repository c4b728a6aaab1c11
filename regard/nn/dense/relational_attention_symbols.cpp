#include "regard/nn/dense/relational_attention_symbols.h"

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

/// q (B, N, D), already projected: softmax over the library's templates, head by head.
at::Tensor symbolic(const SymbolConfig& config, const Weights& weights, const at::Tensor& query) {
  const int64_t heads = config.symbol_heads;
  const at::Tensor q = split_heads(query, heads);
  const auto split = [&](const char* name) {
    return weights[name].to(q.scalar_type()).unflatten(1, {heads, -1}).transpose(0, 1);  // (H, S, D / H)
  };
  const double width = static_cast<double>(weights["template_features"].size(1)) / static_cast<double>(heads);
  const double scale = config.symbol_scale.value_or(1 / std::sqrt(width));
  const at::Tensor scores = at::matmul(q, split("template_features").transpose(-2, -1)) * scale;
  return merge_heads(at::matmul(at::softmax(scores, -1), split("symbol_library")));
}

at::Tensor positional(const SymbolConfig& config, const Weights& weights, const at::Tensor& x, Context& context,
                      const char* id) {
  const at::Tensor& library = weights["symbol_library"];
  const auto most = (context.tokens(x) + context.past()).maybe_as_int();
  if (most && !context.cu_seqlens().defined() && *most > config.max_length)
    fail(id, "at most max_length = " + std::to_string(config.max_length) + " tokens", std::to_string(*most));
  const at::Tensor positions = context.positions(x);
  const at::Tensor rows = at::embedding(library, positions.to(at::kLong)).to(x.scalar_type());
  return rows.dim() == 3 ? rows : rows.unsqueeze(0).expand_symint(x.sym_sizes());
}

/// Where each token's neighbors lie among the keys, (B or 1, N, neighbors) int64: never outside i's own sequence.
at::Tensor neighborhood(const SymbolConfig& config, const at::Tensor& x, const at::Tensor& keys, Context& context,
                        const char* id) {
  const auto integers = x.options().dtype(at::kLong).requires_grad(std::nullopt);
  const c10::SymInt tokens = x.sym_size(1);
  const at::Tensor rows = at::arange(at::Scalar(tokens), integers).unsqueeze(0), bounds = context.cu_seqlens();
  const bool sharded = context.sharded();
  // The place in the sequence, which is not what the input positions may say of a token.
  at::Tensor place = rows + at::Scalar(context.past());
  if (bounds.defined()) place = rows - bounds.index_select(0, context.segments(x)).unsqueeze(0);
  if (sharded) {
    if (context.input("positions").defined())
      fail(id, "no input positions with relational symbols over shards", "positions");
    place = context.positions(x);
    if (place.dim() == 1) place = place.unsqueeze(0);
  }
  const at::Tensor here = sharded ? place : rows + at::Scalar(keys.sym_size(1) - tokens);
  // How many tokens of the sequence follow.
  at::Tensor left = at::scalar_tensor(at::Scalar(context.tokens(x) + context.past() - 1), integers);
  if (const at::Tensor lengths = context.input("lengths"); lengths.defined())
    left = lengths.to(at::kLong).unsqueeze(1) - 1;
  if (bounds.defined()) left = (bounds.diff() - 1).index_select(0, context.segments(x)).unsqueeze(0);
  left = (left - place).clamp_min(0);
  std::vector<at::Tensor> steps;
  for (const int64_t offset : config.offsets())
    steps.push_back(offset < 0 ? here - place.clamp_max(-offset) : here + left.clamp_max(offset));
  return at::stack(at::broadcast_tensors(steps), 2);
}

at::Tensor relational(const SymbolConfig& config, const Weights& weights, const at::Tensor& x, Context& context,
                      const char* id) {
  const int64_t heads = config.neighbor_heads;
  const at::Tensor q = weights.linear(x, "q_proj").unflatten(-1, {heads, -1});  // (B, N, H, D / H)
  at::Tensor keys = weights.linear(x, "k_proj");
  if (context.decoding()) keys = context.recent("neighbors", keys);
  keys = context.gather(keys, 1);
  const at::Tensor index = neighborhood(config, x, keys, context, id);
  const auto steps = static_cast<int64_t>(config.offsets().size());
  const c10::SymInt width = keys.sym_size(2);
  const at::Tensor every = index.expand_symint({keys.sym_size(0), index.sym_size(1), index.sym_size(2)});
  const at::Tensor near = keys.gather(1, every.flatten(1).unsqueeze(2).expand_symint({-1, -1, width}))
                              .unflatten(1, {-1, steps})
                              .unflatten(-1, {heads, -1});  // (B, N, delta, H, D / H)
  at::Tensor relations = (q.unsqueeze(2) * near).sum(-1);   // (B, N, delta, H)
  if (config.normalize_relations) {
    const double width = static_cast<double>(q.sym_size(-1).guard_int(__FILE__, __LINE__));
    relations = at::softmax(relations * config.neighbor_scale.value_or(1 / std::sqrt(width)), 2);
  }
  const Weights inner = weights.under("symbolic_attention.");
  return symbolic(config, inner, inner.linear(weights.linear(relations.flatten(2), "model_dim_proj"), "q_proj"));
}

void declare_symbolic(const SymbolConfig& config, int64_t width, const std::string& prefix, Declaration& weights) {
  weights.linear(prefix + "q_proj", width, width);
  weights.weight(prefix + "template_features", {config.symbol_count, width}, Init::normal(1));
  if (config.trainable_symbols)
    weights.weight(prefix + "symbol_library", {config.symbol_count, width}, Init::normal(1));
  else
    weights.buffer(prefix + "symbol_library", {config.symbol_count, width}, Init::normal(1));
}

}  // namespace

std::vector<int64_t> SymbolConfig::offsets() const {
  std::vector<int64_t> result;
  if (causal_neighbors) {
    for (int64_t d = include_self ? 0 : 1; d <= neighbors; ++d) result.push_back(-d);
  } else {
    for (int64_t d = -neighbors; d <= neighbors; ++d) {
      if (d != 0 || include_self) result.push_back(d);
    }
  }
  return result;
}

void declare_symbols(const SymbolConfig& config, int64_t width, const std::string& prefix, Declaration& weights) {
  if (config.symbols == "symbolic") declare_symbolic(config, width, prefix, weights);
  if (config.symbols == "positional")
    weights.weight(prefix + "symbol_library", {config.max_length, width}, Init::normal(1));
  if (config.symbols == "relative")
    weights.weight(prefix + "rel_pos_enc.rel_pos_embeddings", {config.table_rows(), width}, Init::xavier_uniform());
  if (config.symbols != "relational") return;
  weights.linear(prefix + "q_proj", width, width);
  weights.linear(prefix + "k_proj", width, width);
  const int64_t features = static_cast<int64_t>(config.offsets().size()) * config.neighbor_heads;
  weights.linear(prefix + "model_dim_proj", features, width);
  declare_symbolic(config, width, prefix + "symbolic_attention.", weights);
}

std::vector<CacheStream> symbol_caches(const SymbolConfig& config, int64_t width) {
  if (config.symbols != "relational") return {};
  return {CacheStream::ring("neighbors", {width}, config.neighbors)};
}

at::Tensor retrieve_symbols(const SymbolConfig& config, const Weights& weights, const at::Tensor& x, Context& context,
                            const char* id) {
  if (config.symbols == "positional") return positional(config, weights, x, context, id);
  if (config.symbols == "relational") return relational(config, weights, x, context, id);
  return symbolic(config, weights, weights.linear(x, "q_proj"));
}

void SymbolConfig::fields(Fields& f) {
  f("symbols", symbols, "symbolic, positional, relative, relational or input: where the symbols come from");
  f("symbol_heads", symbol_heads, "heads of symbolic attention");
  f("symbol_count", symbol_count, "entries S of its library");
  f("symbol_scale", symbol_scale, "factor of its scores; null: (width / symbol_heads)^-1/2");
  f("trainable_symbols", trainable_symbols, "whether its library is trained");
  f("max_length", max_length, "positional: entries of the library");
  f("max_distance", max_distance, "relative: L, where distances are cut off");
  f("neighbors", neighbors, "relational: reach delta of the neighborhood");
  f("neighbor_heads", neighbor_heads, "relational: relations to each neighbor");
  f("causal_neighbors", causal_neighbors, "relational: only earlier tokens are neighbors");
  f("include_self", include_self, "relational: a token is its own neighbor too");
  f("normalize_relations", normalize_relations, "relational: softmax over the neighborhood");
  f("neighbor_scale", neighbor_scale, "factor before that softmax; null: (width / neighbor_heads)^-1/2");
}

void SymbolConfig::validate(const char* id, int64_t width) const {
  const auto divides = [&](const char* name, int64_t heads) {
    if (heads < 1 || width % heads)
      fail(id, std::string(name) + " that divides width " + std::to_string(width), std::to_string(heads));
  };
  const auto positive = [&](const char* name, int64_t value) {
    if (value < 1) fail(id, std::string(name) + " >= 1", std::to_string(value));
  };
  divides("symbol_heads", symbol_heads);
  divides("neighbor_heads", neighbor_heads);
  positive("symbol_count", symbol_count);
  positive("max_length", max_length);
  positive("max_distance", max_distance);
  positive("neighbors", neighbors);
}

}  // namespace regard
