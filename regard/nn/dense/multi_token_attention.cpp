#include "regard/nn/dense/multi_token_attention.h"

#include <ATen/OpMathType.h>

#include <cmath>
#include <limits>

#include "regard/base/error.h"
#include "regard/nn/dense/multi_token_scores.h"
#include "regard/nn/dense/rotary.h"
#include "regard/nn/edit_json.h"
#include "regard/nn/shapes.h"
#include "regard/ops/paths.h"

namespace regard {
namespace {

using Config = MultiTokenAttention::Config;
constexpr const char* id = "multi-token-attention";

at::Tensor zeroed(const at::Tensor& tokens, const at::Tensor& where) {
  return where.defined() ? tokens.masked_fill(where.unsqueeze(2), 0) : tokens;
}

/// The tokens of keys and values, without what padding holds: NaN there would reach gradients as 0 * NaN.
at::Tensor source_of(const Config& config, const at::Tensor& x, const Context& context) {
  const at::Tensor memory = context.input("memory"), lengths = context.input("memory_lengths");
  if (!memory.defined()) {
    require(!lengths.defined(), id, "memory with memory_lengths", "memory_lengths alone");
    return x;
  }
  require(!config.causal, id, "memory only where causal is false", "both");
  require(!context.input("cu_seqlens").defined(), id, "memory or packed sequences", "both");
  if (memory.dim() != 3 || memory.sym_size(2) != config.width || memory.sym_size(0) != x.sym_size(0))
    fail(id, "memory (B, N, " + std::to_string(config.width) + ") with the batch of x " + describe(x),
         describe(memory));
  return lengths.defined() ? zeroed(memory, padding(lengths, memory.sym_size(1))) : memory;
}

at::Tensor turned(const Config& config, const at::Tensor& t, const at::Tensor& positions, const char* name) {
  const bool fits = positions.dim() == 1 || (positions.dim() == 2 && positions.sym_size(0) == t.sym_size(0));
  if (!fits || positions.sym_size(-1) != t.sym_size(2))
    fail(id, std::string(name) + " (L) or (B, L), L = " + describe(t.sym_size(2)), describe(positions));
  return rotate(t, positions, config.rope_theta, config.key_width(), config.rope_interleaved);
}

void turn(const Config& config, const Context& context, const at::Tensor& x, const at::Tensor& source, at::Tensor& q,
          at::Tensor& k) {
  const bool cross = context.input("memory").defined();
  at::Tensor keys = context.input("memory_positions");
  require(config.rope || (!keys.defined() && !context.input("positions").defined()), id, "positions only with rope",
          "positions");
  require(cross || !keys.defined(), id, "memory with memory_positions", "memory_positions alone");
  if (!config.rope) return;
  const at::Tensor own = context.positions(x);
  if (!keys.defined()) keys = cross ? at::arange(at::Scalar(source.sym_size(1)), x.options().dtype(at::kLong)) : own;
  q = turned(config, q, own, "positions");
  k = turned(config, k, keys, "memory_positions");
}

/// RMSNorm of each head's o (B, H, M, Dh), in float32 at least, and its gate.
at::Tensor finished(const Config& config, const Weights& weights, at::Tensor o) {
  if (config.group_norm) {
    const at::ScalarType type = o.scalar_type();
    const at::Tensor real = o.to(at::toOpMathType(type));
    const double lambda =
        config.lambda_init.value_or(0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(config.layer_id)));
    const at::Tensor root = at::rsqrt(real.square().mean(-1, /*keepdim=*/true) + config.norm_epsilon);
    o = (real * root).to(type) * weights["subln.weight"];
    if (config.layer_norm_rescale) o = o * (1 - lambda);
  }
  return config.add_gating ? o * at::sigmoid(weights.linear(o, "gate")) : o;
}

}  // namespace

std::vector<CacheStream> MultiTokenAttention::caches(const Config& config) {
  if (!config.causal) return {};
  std::vector<CacheStream> streams = {CacheStream::append("k", {config.key_heads(), config.key_width()}),
                                      CacheStream::append("v", {config.key_heads(), config.key_width()})};
  const int64_t rows = config.halo_before() + config.halo_after();
  if (rows > 0) streams.push_back(CacheStream::ring("q", {config.heads, config.key_width()}, rows));
  return streams;
}

at::Tensor MultiTokenAttention::forward(const Config& config, const Weights& weights, const at::Tensor& given,
                                        Context& context) {
  const Path path = path_from_name(id, context.path);
  require(path != Path::fused, id, "path auto, stripe or composite (a filter over scores runs in stripes)", "fused");
  const at::Tensor padded = context.padding(given), x = zeroed(given, padded), source = source_of(config, x, context);
  at::Tensor q = split_heads(weights.linear(x, "wq"), config.heads);
  at::Tensor k = split_heads(weights.linear(source, "wk"), config.key_heads());
  at::Tensor v = split_heads(weights.linear(source, "wv"), config.key_heads());
  turn(config, context, x, source, q, k);

  MultiTokenScores scores(config, weights);
  ops::StripeOptions options;
  options.before = config.halo_before() + config.halo_after();
  // The composite path is one stripe of all rows.
  options.block = path == Path::composite ? std::numeric_limits<int64_t>::max() : config.block_rows;
  scores.segments = context.segments(x);
  const bool cross = context.input("memory").defined();
  scores.key_lengths = context.input(cross ? "memory_lengths" : "lengths");
  scores.hidden = context.input("hidden");
  if (!cross) {
    k = context.append("k", k);
    v = context.append("v", v);
    if (options.before > 0) q = context.recent("q", q);
    options.skipped = q.sym_size(2) - x.sym_size(1);
  }
  if (!cross) scores.offset = k.sym_size(2) - q.sym_size(2);
  // An edit sees whole rows.
  if (config.causal && context.edits.empty()) options.causal = scores.offset;
  scores.skipped = options.skipped;
  scores.check_hidden(q, k, context.decoding());
  if (config.attn_drop > 0 && context.training) scores.seed = context.stream("attention");
  for (const Edit& edit : context.edits)
    if (edit.layer.empty() || names_layer(edit.layer, context.layer())) scores.add(edit);

  count_path("attention", path == Path::composite ? path : Path::stripe);
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(config.key_width())));
  const auto tensors = scores.tensors();
  if (context.wants("attn"))
    context.output("attn", ops::stripe_weights(q, k, scale, scores.function(), tensors, options));
  const at::Tensor o = ops::stripe_attention(q, k, v, scale, scores.function(), tensors, options)[0];
  return zeroed(weights.linear(merge_heads(finished(config, weights, o)), "wo"), padded);
}

REGARD_MECHANISM(MultiTokenAttention)

}  // namespace regard
