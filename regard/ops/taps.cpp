#include "regard/ops/taps.h"

#include <torch/library.h>

#include "regard/base/error.h"
#include "regard/ops/attention_map.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/blocked.h"
#include "regard/ops/boundary.h"
#include "regard/ops/packed.h"
#include "regard/ops/stripe.h"
#include "regard/ops/tap_name.h"
#include "regard/ops/tap_stripes.h"

namespace regard {
namespace {

using ops::TapKind;
using ops::TapName;

constexpr const char* marked_name = "tap_marked";

/// One call of attention_taps.
struct Measuring {
  at::Tensor q, k;
  AttentionSpec spec;
  AttentionArguments arguments;  ///< in order
  TapArguments more;
  ops::Call call;

  bool edited() const { return !more.edits.empty(); }
};

std::string shape_of(const at::Tensor& t) {
  std::string text = "shape (";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + ")";
}

/// Strict forbids that a fast path was expected and not taken; a measurement in stripes is what was asked.
std::string path_for(const Measuring& m) {
  if (m.arguments.path == "composite" || m.arguments.path == "stripe") return m.arguments.path;
  return strict() && !ops::fused_refusal(m.call).empty() ? "stripe" : "auto";
}

// ---- sums over keys of weight times a function of the pair: pair outputs ------------------------------------------

/// marked[...] of a pair, its axes broadcast.
Expr marked_value(const Measuring& m) {
  const at::Tensor& t = m.more.marked;
  if (!t.defined()) fail("tap", "the tensor of marked keys with 'marked_mass'", "none");
  const c10::SymInt sizes[] = {m.call.B(), m.call.H(), m.call.M(), m.call.N()};
  const Expr local[] = {batch(), head(), row(), column()};
  static const std::vector<std::vector<int>> axes = {{}, {3}, {0, 3}, {0, 1, 3}, {0, 1, 2, 3}};
  std::vector<Expr> indices;
  bool fits = t.dim() >= 1 && t.dim() <= 4;
  for (int64_t d = 0; fits && d < t.dim(); ++d) {
    const int axis = axes[static_cast<size_t>(t.dim())][static_cast<size_t>(d)];
    fits = t.sym_size(d) == sizes[axis] || t.sym_size(d) == 1;
    indices.push_back(t.sym_size(d) == 1 ? Expr(0) : local[axis]);
  }
  if (!fits) fail("tap", "marked keys (N), (B, N), (B, H, N) or (B, H, M, N)", shape_of(t));
  const Type type = t.scalar_type() == at::kBool                 ? Type::boolean
                    : at::isIntegralType(t.scalar_type(), false) ? Type::integer
                                                                 : Type::real;
  return cast(capture(marked_name, type, std::move(indices)), Type::real);
}

/// The pair's share of the reduction, or empty where it is none of this kind.
std::vector<Expr> pair_values(const Measuring& m, const TapName& tap) {
  switch (tap.kind) {
    case TapKind::mass: {
      if (!tap.given) return {Expr(1.0)};
      Expr chosen(false);
      for (const auto& [first, last] : tap.ranges) chosen = chosen | ((key() >= first) & (key() <= last));
      return {cast(chosen, Type::real)};
    }
    case TapKind::marked_mass:
      return {marked_value(m)};
    case TapKind::own_mass:
      return {cast(query() == key(), Type::real)};
    case TapKind::mean_distance:
      return {cast(abs(query() - key()), Type::real)};
    case TapKind::entropy:
    case TapKind::effective_keys: {
      // -sum p log p = lse sum p - sum p s where p = exp(s - lse); a score of -inf has weight 0, not 0 * inf.
      const bool plain = m.spec.normalizer.kind == Normalizer::Kind::softmax && !m.spec.weight.defined() &&
                         m.spec.dropout == 0 && !m.edited();
      if (!plain) return {};
      const Expr score = m.spec.score.defined() ? m.spec.score : scale() * dot();
      return {Expr(1.0), where(score > Expr(-std::numeric_limits<double>::infinity()), score, Expr(0.0))};
    }
    default:
      return {};
  }
}

at::Tensor exp_where_keys(const at::Tensor& entropy, const at::Tensor& mass) {
  return at::where(mass.gt(0), at::exp(entropy), at::zeros({}, entropy.options()));
}

at::Tensor finished(const TapName& tap, const at::Tensor& lse, const at::Tensor& channels) {
  const at::Tensor first = channels.select(-1, 0);
  if (tap.kind != TapKind::entropy && tap.kind != TapKind::effective_keys) return first;
  const at::Tensor none = at::zeros({}, lse.options()), empty = at::isneginf(lse);
  const at::Tensor entropy = at::where(empty, none, at::where(empty, none, lse) * first - channels.select(-1, 1));
  return tap.kind == TapKind::entropy ? entropy : exp_where_keys(entropy, first);
}

void measure_pairs(const Measuring& m, const std::vector<TapName>& taps, std::vector<at::Tensor>& out) {
  AttentionSpec spec = m.spec;
  spec.pair_outputs.clear();
  AttentionArguments arguments = by_name(m.spec, m.arguments);
  arguments.path = path_for(m);
  if (m.more.marked.defined()) arguments.named_captures[marked_name] = m.more.marked.to(m.q.device());
  std::vector<std::pair<size_t, size_t>> wanted;  // the tap, its first channel
  for (size_t i = 0; i < taps.size(); ++i) {
    const auto values = pair_values(m, taps[i]);
    if (values.empty()) continue;
    wanted.emplace_back(i, spec.pair_outputs.size());
    for (const Expr& value : values) spec.pair_outputs.push_back({value, {}, 1});
  }
  if (wanted.empty()) return;
  if (strict() && arguments.path == "auto")
    arguments.path = "stripe";  // where pair outputs run until a kernel has them
  arguments = in_order(spec, arguments);
  const at::Tensor no_values = m.k.slice(3, 0, 0);
  const AttentionOutput result = m.edited() ? ops::attention_edited(m.q, m.k, no_values, spec, arguments, m.more.edits)
                                            : attention(m.q, m.k, no_values, spec, arguments);
  for (const auto& [i, channel] : wanted)
    out[i] = finished(taps[i], result.lse, result.pairs.slice(-1, static_cast<int64_t>(channel)));
}

// ---- rows and columns --------------------------------------------------------------------------------------------

/// The indices of the chosen rows, int64 (R).
at::Tensor chosen_rows(const Measuring& m, const TapName& tap) {
  const auto options = m.q.options().dtype(at::kLong).requires_grad(std::nullopt);
  const c10::SymInt M = m.call.M();
  if (!tap.given) return at::arange(at::Scalar(M), options);
  std::vector<at::Tensor> parts;
  for (const auto& [first, last] : tap.ranges) {
    const c10::SymInt begin = first < 0 ? M + first : c10::SymInt(first),
                      end = first < 0 ? begin + 1 : c10::SymInt(last + 1);
    if (begin < 0 || end > M) {
      const auto known = M.maybe_as_int();
      fail("tap",
           "rows among the " + (known ? std::to_string(*known) + " " : std::string()) + "queries in '" + tap.text + "'",
           std::to_string(first < 0 ? first : last));
    }
    parts.push_back(at::arange(at::Scalar(begin), at::Scalar(end), options));
  }
  return at::cat(parts);
}

at::Tensor measured_rows(const Measuring& m, const TapName& tap) {
  const at::Tensor index = chosen_rows(m, tap);
  const ops::Rows rows{0, 0, index};
  const at::Tensor weights = ops::attention_weights(m.call, rows);
  return m.edited() ? ops::edited(weights, rows, m.more.edits, ops::tensors_of(m.more.edits)) : weights;
}

at::Tensor column_sums(const Measuring& m) {
  AttentionArguments arguments = m.arguments;
  arguments.path = path_for(m);
  AttentionSpec spec = m.spec;
  if (!spec.pair_outputs.empty()) {  // they may read captures that the column sums do not
    arguments = by_name(spec, arguments);
    spec.pair_outputs.clear();
    arguments = in_order(spec, arguments);
  }
  const at::Tensor ones =
      at::ones({}, m.q.options().requires_grad(std::nullopt)).expand_symint({m.call.B(), m.call.H(), m.call.M(), 1});
  return attention_transposed(m.q, m.k, ones, to_json(spec), arguments).squeeze(-1);
}

}  // namespace

void check_tap(const std::string& name) { ops::parse_tap(name); }
std::vector<std::string> tap_names() { return ops::tap_forms(); }

std::vector<at::Tensor> attention_taps(const at::Tensor& q, const at::Tensor& k, const AttentionSpec& spec,
                                       const AttentionArguments& arguments, const std::vector<std::string>& names,
                                       const TapArguments& more) {
  const auto some = [](const at::Tensor& t) { return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt; };
  std::vector<TapName> taps;
  for (const auto& name : names) taps.push_back(ops::parse_tap(name));
  Measuring m{q, k, spec, in_order(spec, arguments), more, {}};
  m.call =
      ops::make_call("attention_taps", q, k, k.slice(3, 0, 0), to_json(spec), m.arguments.captures,
                     m.arguments.operands, some(m.arguments.sinks), some(m.arguments.seed), m.arguments.query_offset);
  ops::check_edits(m.call, more.edits);
  std::vector<at::Tensor> out(taps.size());
  measure_pairs(m, taps, out);
  std::vector<size_t> left;
  std::vector<TapName> in_stripes;
  for (size_t i = 0; i < taps.size(); ++i) {
    if (out[i].defined()) continue;
    if (taps[i].kind == TapKind::rows) {
      out[i] = measured_rows(m, taps[i]);
    } else if (taps[i].kind == TapKind::column_sums && !m.edited()) {
      out[i] = column_sums(m);
    } else {
      left.push_back(i);
      in_stripes.push_back(taps[i]);
    }
  }
  const auto measured = ops::measure_in_stripes(m.call, m.arguments.path == "composite", in_stripes, more.edits);
  for (size_t i = 0; i < left.size(); ++i) out[left[i]] = measured[i];
  return out;
}

namespace {

using OptionalTensor = std::optional<at::Tensor>;
at::Tensor tensor_of(const OptionalTensor& t) { return t && t->defined() ? *t : at::Tensor(); }

std::vector<at::Tensor> taps_op(const at::Tensor& q, const at::Tensor& k, std::vector<std::string> taps,
                                std::string spec, at::TensorList captures, at::TensorList operands,
                                const OptionalTensor& sinks, const OptionalTensor& seed, c10::SymInt query_offset,
                                std::string path, const OptionalTensor& marked) {
  AttentionArguments arguments;
  arguments.captures = captures.vec();
  arguments.operands = operands.vec();
  arguments.sinks = tensor_of(sinks);
  arguments.seed = tensor_of(seed);
  arguments.query_offset = query_offset;
  arguments.path = path;
  path_from_name("attention_taps", path);
  return attention_taps(q, k, spec_from_json(spec), arguments, taps, {tensor_of(marked), {}});
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "attention_taps(Tensor q, Tensor k, str[] taps, str spec, Tensor[] captures, Tensor[] operands, "
      "Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0, str path='auto', Tensor? marked=None) -> Tensor[]",
      guarded<&taps_op>);
}

// vmap asks for a rule even of a composite op: run it, and let the ops inside be batched.
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) { m.impl("attention_taps", guarded<&taps_op>); }

}  // namespace
}  // namespace regard
