#include "regard/nn/sparse/landmark.h"

#include <ATen/OpMathType.h>

#include <cmath>
#include <limits>

#include "regard/base/error.h"
#include "regard/nn/dropout.h"
#include "regard/nn/shapes.h"
#include "regard/nn/sparse/landmark_retrieval.h"
#include "regard/ops/call.h"
#include "regard/ops/counter_random.h"
#include "regard/ops/landmark.h"
#include "regard/ops/paths.h"
#include "regard/ops/stripe.h"

namespace regard {
namespace {

using Config = Landmark::Config;
constexpr const char* id = "landmark";

at::Tensor range(const c10::SymInt& begin, const c10::SymInt& end, const at::Tensor& like) {
  return at::arange(at::Scalar(begin), at::Scalar(end), like.options().dtype(at::kLong).requires_grad(std::nullopt));
}

at::Tensor zeroed(const at::Tensor& tokens, const at::Tensor& where) {
  return where.defined() ? tokens.masked_fill(where.unsqueeze(2), 0) : tokens;
}

/// (B or 1, N) bool: the landmarks among x's tokens.
at::Tensor landmarks_of(const Config& config, const at::Tensor& x, const Context& context) {
  const at::Tensor given = context.input("is_mem");
  if (!given.defined()) {
    at::Tensor positions = context.positions(x);
    if (positions.dim() == 1) positions = positions.unsqueeze(0);
    return positions.remainder(config.block()).eq(config.mem_freq);
  }
  require(!config.topk || !context.decoding(), id, "regular landmarks with topk, whose blocks are of one size",
          "is_mem");
  if (given.dim() != 2 || given.scalar_type() != at::kBool || given.sym_size(0) != x.sym_size(0) ||
      given.sym_size(1) != x.sym_size(1))
    fail(id, "is_mem (B, N) bool of the tokens of x " + describe(x), describe(given));
  return given;
}

at::Tensor frequencies_of(const Config& config, const at::Tensor& q) {
  if (!config.rope) return {};
  const auto real = q.options().dtype(at::toOpMathType(q.scalar_type())).requires_grad(std::nullopt);
  const double width = static_cast<double>(config.head_width());
  const at::Tensor exact = at::pow(config.rope_theta, at::arange(0, config.head_width(), 2, real).div(width).neg());
  return config.parity ? exact.to(at::kFloat).to(exact.scalar_type()) : exact;
}

/// Random factors that depend on where an entry stands: 0 with probability p, else 1 / (1 - p). columns and queries
/// int64.
at::Tensor dropped(const at::Tensor& t, double p, const at::Tensor& seed, const at::Tensor& queries) {
  const at::Tensor kept =
      ops::random_event(1 - p, seed.to(t.device()),
                        {range(0, t.sym_size(0), t).view({-1, 1, 1, 1}), range(0, t.sym_size(1), t).view({1, -1, 1, 1}),
                         queries.view({1, 1, -1, 1}), range(0, t.sym_size(3), t).view({1, 1, 1, -1})});
  return t * kept.to(t.scalar_type()) * (1 / (1 - p));
}

/// What a call of the whole sequence (all keys so far) needs beside q, k and v.
struct Whole {
  at::Tensor is_mem, section;   ///< (B or 1, N)
  at::Tensor segments;          ///< (N) or undefined
  at::Tensor group_seed, seed;  ///< undefined: no dropout
  c10::SymInt offset = 0;       ///< keys of earlier calls
};

ops::GroupFactor factor_of(const Config& config, const Whole& whole, const at::Tensor& queries) {
  if (!whole.group_seed.defined()) return {};
  return [=, p = config.group_dropout, seed = whole.group_seed](const at::Tensor& share) {
    return dropped(share, p, seed, queries);
  };
}

ops::WeightFunction masked_form(const Config& config, const Whole& whole) {
  return [=](const ops::StripeScores& stripe, const std::vector<at::Tensor>&) {
    const c10::SymInt n = stripe.scores.sym_size(3);
    const at::Tensor query = range(stripe.rows.begin + whole.offset, stripe.rows.end + whole.offset, stripe.scores);
    const at::Tensor key = range(0, n, stripe.scores);
    ops::LandmarkKeys keys;
    keys.is_mem = whole.is_mem.slice_symint(1, 0, n);
    keys.section = whole.section.slice_symint(1, 0, n);
    keys.current = whole.section.index_select(1, query);
    keys.allowed = key <= query.unsqueeze(1);
    if (whole.segments.defined())
      keys.allowed = at::logical_and(
          keys.allowed, whole.segments.slice_symint(0, 0, n) == whole.segments.index_select(0, query).unsqueeze(1));
    at::Tensor weights = ops::landmark_softmax(stripe.scores, keys, factor_of(config, whole, query));
    if (whole.seed.defined()) weights = dropped(weights, config.attn_drop, whole.seed, query);
    return std::vector<at::Tensor>{weights};
  };
}

/// Regular blocks from the first key on: states of blocks, absorbed as one key each.
at::Tensor flash_form(const Config& config, const Whole& whole, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v, double scale, const ops::StripeOptions& options) {
  return ops::stripe_output(
      q, k, v, scale,
      [=](const ops::StripeScores& stripe, const at::Tensor& values) {
        const at::Tensor query = range(stripe.rows.begin + whole.offset, stripe.rows.end + whole.offset, stripe.scores);
        return ops::landmark_blocks(stripe.scores, values, config.block(), query, factor_of(config, whole, query));
      },
      options);
}

at::Tensor grouped_logits(const at::Tensor& logits, const at::Tensor& is_mem, const at::Tensor& x,
                          const Config& config) {
  const c10::SymInt N = x.sym_size(1);
  const std::vector<c10::SymInt> shape = {x.sym_size(0), config.heads, N, N};
  if (!logits.defined() || logits.sym_sizes() != c10::SymIntArrayRef(shape))
    fail(id, "the input logits " + describe(c10::SymIntArrayRef(shape)) + " for the output probs", describe(logits));
  const at::Tensor section = ops::landmark_sections(is_mem), key = range(0, N, x);
  return ops::landmark_softmax(logits, {is_mem, section, section, key <= key.unsqueeze(1)});
}

}  // namespace

at::Tensor Landmark::forward(const Config& config, const Weights& weights, const at::Tensor& given, Context& context) {
  const Path path = path_from_name(id, context.path);
  require(path != Path::fused, id, "path auto, stripe or composite (a softmax in two levels runs in stripes)", "fused");
  require(context.edits.empty(), id, "no edits (they change one softmax, and there are two)", "an edit");
  const at::Tensor padded = context.padding(given), x = zeroed(given, padded);
  const auto parts = weights.linear(x, "c_attn").split(config.width, -1);
  at::Tensor q = split_heads(parts[0], config.heads), k = split_heads(parts[1], config.heads);
  const at::Tensor v = context.append("v", split_heads(parts[2], config.heads));
  const c10::SymInt past = context.past();
  const at::Tensor own = landmarks_of(config, x, context), frequencies = frequencies_of(config, q);
  const double scale = config.scale.value_or(1 / std::sqrt(static_cast<double>(config.head_width())));
  const bool random = context.training && (config.group_dropout > 0 || config.attn_drop > 0);
  if (context.wants("probs")) context.output("probs", grouped_logits(context.input("logits"), own, x, config));
  count_path("attention", path == Path::composite ? path : Path::stripe);

  at::Tensor o;
  k = context.append("k", k);
  if (config.topk && context.decoding() && past > 0) {
    require(!random && !context.wants("attn"), id, "fetched blocks without dropout and without the output attn",
            "one of them");
    o = landmark_retrieval(config, {q, k, v, past.guard_int(__FILE__, __LINE__), frequencies, scale});
  } else {
    Whole whole;
    whole.offset = past;
    whole.segments = context.segments(x);
    whole.is_mem = own;
    if (context.decoding() && !config.topk) {
      const at::Tensor flags = own.expand_symint({x.sym_size(0), x.sym_size(1)}).unsqueeze(-1).to(x.scalar_type());
      whole.is_mem = context.append("is_mem", flags).squeeze(-1) > 0;
    }
    whole.section = ops::landmark_sections(whole.is_mem);
    if (random && config.group_dropout > 0) whole.group_seed = context.stream("groups");
    if (random && config.attn_drop > 0) whole.seed = context.stream("attention");
    if (frequencies.defined()) {
      const at::Tensor positions = context.positions(x);
      q = landmark_turn(q, positions, frequencies);
      k = landmark_turn(k, context.decoding() ? range(0, k.sym_size(2), x) : positions, frequencies);
    }
    ops::StripeOptions options;
    options.block = path == Path::composite ? std::numeric_limits<int64_t>::max() : config.block_rows;
    options.causal = past;
    const bool regular = !context.input("is_mem").defined() && !whole.segments.defined() && !whole.seed.defined();
    require(config.form != "flash" || regular, id,
            "regular landmarks in one sequence, without attn_drop, with form 'flash'", "another call");
    // Cached landmarks may have been given by an earlier call: only the form that reads them is sure. A recorded
    // program keeps its length free in the mask form alone: how many blocks there are would bind it.
    const bool choose = config.form == "auto" && regular && !ops::traced(q) && (!context.decoding() || config.topk);
    const bool flash = config.form == "flash" || choose;
    if (context.wants("attn"))
      context.output("attn", ops::stripe_weights(q, k, scale, masked_form(config, whole), {}, options));
    o = flash ? flash_form(config, whole, q, k, v, scale, options)
              : ops::stripe_attention(q, k, v, scale, masked_form(config, whole), {}, options)[0];
  }
  const at::Tensor y = dropout(weights.linear(merge_heads(o), "c_proj"), config.proj_drop, context);
  return zeroed(y, padded);
}

REGARD_MECHANISM(Landmark)

}  // namespace regard
