#include "regard/models/vit_pool.h"

#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"
#include "regard/ops/attention.h"

namespace regard {
namespace {

/// softmax(q k^T / sqrt(Dh)) v as a layer of the host: taps and edits reach it.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Blackboard& board) {
  Context inner = board.open(vit_attention_pool);
  inner.open(vit_attention_pool, {}, q);
  const at::Tensor o = merge_heads(inner.attend(q, k, v, AttentionSpec()).o);
  inner.close(vit_attention_pool);
  board.close(inner);
  return o;
}

at::Tensor map_pool(const ViT::Config& config, const Weights& w, const at::Tensor& x, Context& context,
                    Blackboard& board) {
  const at::Tensor latent = w["latent"].expand_symint({x.sym_size(0), 1, config.embed_dim});
  const at::Tensor q = split_heads(w.linear(latent, "q"), config.num_heads);
  const auto kv = w.linear(x, "kv").chunk(2, -1);
  at::Tensor z = attend(q, split_heads(kv[0], config.num_heads), split_heads(kv[1], config.num_heads), board);
  z = w.linear(z, "proj");
  z = z + vit_mlp(w.under("mlp."), w.layer_norm(z, "norm", vit_epsilon), 0, context);
  return z.select(1, 0);
}

at::Tensor prr_pool(const ViT::Config& config, const at::Tensor& x, Blackboard& board) {
  const at::Tensor split = split_heads(x, config.num_heads);
  const at::Tensor refined = attend(split, split, split, board);
  return config.class_token ? refined.select(1, 0) : refined.mean(1);
}

at::Tensor registered_pool(const ViT::Config& config, const Weights& w, const at::Tensor& x, int64_t prefix,
                           const std::vector<int64_t>& grid, Context& context, Blackboard& board) {
  const auto pool = config.pool_instance();
  const Info& info = pool->info();
  Context inner = board.open("pool");
  const bool whole = info.needs_prefix || config.pool_include_prefix;
  if (info.needs_prefix) inner.prefix = prefix;
  // Prefix tokens that the pool is not told of have no place on the grid.
  if (info.needs_prefix || !whole || prefix == 0)
    for (const int64_t size : grid) inner.grid.emplace_back(size);
  const bool attn = context.wants("pool_attn");
  if (attn && !inner.wants("attn")) inner.wanted.push_back("attn");
  const at::Tensor tokens = whole ? x : x.slice_symint(1, prefix);
  at::Tensor pooled = pool->forward(w.under("pool.").list(), tokens, inner);
  board.close(inner);
  if (attn) context.output("pool_attn", inner.outputs["attn"]);
  return pooled;
}

}  // namespace

at::Tensor vit_mlp(const Weights& w, const at::Tensor& x, double p, Context& context) {
  at::Tensor hidden = dropout(at::gelu(w.linear(x, "fc1")), p, context);
  if (w.has("norm.weight")) hidden = w.layer_norm(hidden, "norm", vit_epsilon);
  return dropout(w.linear(hidden, "fc2"), p, context);
}

at::Tensor vit_pool(const ViT::Config& config, const Weights& weights, const at::Tensor& x, int64_t prefix,
                    const std::vector<int64_t>& grid, Context& context, Blackboard& board) {
  if (!config.pool.empty()) return registered_pool(config, weights, x, prefix, grid, context, board);
  const std::string& kind = config.global_pool;
  if (kind == "" || kind == "none") return x;
  if (kind == "token") return x.select(1, 0);
  if (kind == "prr") return prr_pool(config, x, board);
  const at::Tensor tokens = config.pool_include_prefix ? x : x.slice_symint(1, prefix);
  if (kind == "map") return map_pool(config, weights.under("attn_pool."), tokens, context, board);
  if (kind == "avg") return tokens.mean(1);
  if (kind == "max") return tokens.amax(1);
  return (tokens.amax(1) + tokens.mean(1)) * 0.5;
}

}  // namespace regard
