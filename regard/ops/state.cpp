#include "regard/ops/state.h"

#include <algorithm>
#include <limits>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/attention_paths.h"
#include "regard/ops/executor_place.h"
#include "regard/ops/stripe.h"

namespace regard {
namespace {

using Kind = Normalizer::Kind;

/// One source as `absorb` works on it: in compute dtype, everything by name.
struct Source {
  at::Tensor q, k, v;
  AttentionSpec spec;
  AttentionArguments arguments;

  Expr score() const { return spec.score.defined() ? spec.score : scale() * dot(); }
  bool plain() const { return !spec.weight.defined() && !spec.counted.defined() && spec.dropout == 0; }
  at::Tensor ones() const {
    return at::ones_symint({k.sym_size(0), k.sym_size(1), k.sym_size(2), 1}, v.options().requires_grad(std::nullopt));
  }

  AttentionOutput run(const AttentionSpec& with, const at::Tensor& values) const {
    return attention(q, k, values, with, arguments);
  }
  /// The spec with weights `score` as they are, and its own weight factor, dropout and pair outputs.
  AttentionSpec linear(const Expr& weights) const {
    AttentionSpec out = spec;
    out.normalizer = Normalizer{};
    out.normalizer.kind = Kind::identity;
    out.score = weights;
    out.counted = {};
    return out;
  }
  /// Only `term` itself, over the counted (or only the kept) pairs.
  AttentionSpec alone(const Expr& term, bool counted = true) const {
    AttentionSpec out = linear(term);
    if (counted && spec.counted.defined()) out.keep = spec.counted;
    out.weight = {};
    out.dropout = 0;
    out.pair_outputs.clear();
    return out;
  }
  /// sum of `term` over the counted (or only the kept) pairs, (B, H, M).
  at::Tensor sum(const Expr& term, bool counted = true) const {
    return run(alone(term, counted), ones()).o.squeeze(-1);
  }
};

at::Tensor widened(const at::Tensor& t) {
  return t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf ? t.to(at::kFloat) : t;
}

void put(State& state, const std::string& values, const std::string& pairs, const Source& source,
         const AttentionOutput& out) {
  state.set(values, out.o);
  if (source.spec.pair_channels() > 0) state.set(pairs, out.pairs);
}

/// max |s| over the counted pairs of each row, 0 where there is none; its gradient goes to the first largest.
at::Tensor greatest_magnitude(const Source& source) {
  const AttentionSpec spec = source.alone(source.score());
  const AttentionArguments given = in_order(spec, source.arguments);
  const ops::Call call = ops::make_call("absorb", source.q, source.k, source.ones(), to_json(spec), given.captures,
                                        given.operands, std::nullopt, std::nullopt, given.query_offset);
  if (call.N() == 0)
    return at::zeros_symint({call.B(), call.H(), call.M()}, source.q.options().requires_grad(std::nullopt));
  const ops::StripeFunction stripe = [call](const ops::Rows& rows, const std::vector<at::Tensor>& in) {
    const at::Tensor scores = ops::attention_weights(ops::with_tensors(call, in), rows);
    return std::vector<at::Tensor>{std::get<0>(scores.abs().max(-1))};
  };
  return ops::run_stripes(call.M(), ops::stripe_rows(call), ops::tensors_of(call), stripe,
                          {ops::Combine::concatenate(2)})[0];
}

// With an epsilon the signed softmax leaves scores of 0 out: it is the softmax of the magnitudes with signs as weights,
// and one more term, epsilon times the largest, in the denominator.
Source without_zero_scores(Source source) {
  const Expr s = source.score(), zero = Expr(0.0);
  const Expr sign = where(s > zero, Expr(1.0), where(s < zero, Expr(-1.0), zero));
  source.spec.score = where(s == zero, Expr(-std::numeric_limits<double>::infinity()), abs(s));
  source.spec.weight = source.spec.weight.defined() ? source.spec.weight * sign : sign;
  source.spec.normalizer.kind = Kind::softmax;
  source.spec.normalizer.epsilon = 0;
  return source;
}

// o and lse over what is kept; what is counted only decides the denominator.
State softmax_state(const Source& source) {
  AttentionSpec spec = source.spec;
  spec.normalizer.sinks = false;
  spec.counted = {};
  const AttentionOutput out = source.run(spec, source.v);
  State state;
  put(state, "o", "pairs", source, out);
  state.set("lse", out.lse);
  if (source.spec.counted.defined()) {
    spec.keep = source.spec.counted;
    spec.weight = {};
    spec.dropout = 0;
    spec.pair_outputs.clear();
    state.set("counted_lse", source.run(spec, source.ones()).lse);
  }
  return state;
}

// A column of ones beside the values sums the weights in the same pass, where weights are all that is summed.
State sum_state(const Source& source) {
  const Expr s = source.score(), positive = where(s <= Expr(0.0), Expr(0.0), s);
  State state;
  if (source.plain()) {
    const AttentionOutput out = source.run(source.linear(positive), at::cat({source.v, source.ones()}, -1));
    const c10::SymInt width = source.v.sym_size(3);
    state.set("o", out.o.slice_symint(-1, 0, width));
    if (source.spec.pair_channels() > 0) state.set("pairs", out.pairs);
    state.set("l", out.o.select_symint(-1, width));
    return state;
  }
  put(state, "o", "pairs", source, source.run(source.linear(positive), source.v));
  state.set("l", source.sum(positive));
  return state;
}

State signed_softmax_state(const Source& source) {
  if (source.spec.normalizer.epsilon == 0) return softmax_state(source);
  State state = softmax_state(without_zero_scores(source));
  state.set("top", greatest_magnitude(source));
  state.set("top_parts", at::ones_like(state["top"].detach()));
  return state;
}

State z_score_state(Source source) {
  const Expr s = source.score(), one = Expr(1.0);
  State state;
  const at::Tensor n = source.sum(one);
  const at::Tensor mean = at::div(source.sum(s), n.clamp_min(1));
  source.arguments.named_captures["state.mean"] = mean;
  const Expr centered = s - capture("state.mean", Type::real, {batch(), head(), row()});
  state.set("n", n);
  state.set("mean", mean);
  state.set("M2", source.sum(centered * centered));
  put(state, "A", "pairs_A", source, source.run(source.linear(centered), source.v));
  put(state, "V", "pairs_V", source, source.run(source.linear(one), source.v));
  return state;
}

State added_state(const Source& source) {
  using Divisor = Normalizer::Divisor;
  AttentionSpec spec = source.spec;
  spec.normalizer.divisor = Divisor::one;
  State state;
  put(state, "o", "pairs", source, source.run(spec, source.v));
  const auto divisor = source.spec.normalizer.divisor;
  if (divisor == Divisor::kept) state.set("count", source.sum(Expr(1.0), /*counted=*/false));
  if (divisor == Divisor::keys) {
    const at::Tensor keys =
        at::scalar_tensor(at::Scalar(source.k.sym_size(2)), state["o"].options().requires_grad(std::nullopt));
    state.set("count", keys.expand_symint({source.q.sym_size(0), source.q.sym_size(1), source.q.sym_size(2)}));
  }
  return state;
}

bool reads_keys(const AttentionSpec& spec) {
  std::vector<Expr> roots = {spec.score, spec.keep, spec.weight, spec.counted};
  for (const auto& pair : spec.pair_outputs) {
    roots.push_back(pair.value);
    roots.push_back(pair.bucket);
  }
  const auto entries = flatten(roots).entries;
  return std::any_of(entries.begin(), entries.end(), [](const auto& e) { return e.expr.op() == Op::keys; });
}

}  // namespace

void State::set(const std::string& name, at::Tensor tensor) {
  names.push_back(name);
  tensors.push_back(std::move(tensor));
}

at::Tensor State::find(const std::string& name) const {
  const auto it = std::find(names.begin(), names.end(), name);
  return it == names.end() ? at::Tensor() : tensors[static_cast<size_t>(it - names.begin())];
}

const at::Tensor& State::operator[](const std::string& name) const {
  const auto it = std::find(names.begin(), names.end(), name);
  if (it == names.end()) fail("state", "an entry '" + name + "'", quoted_list(names));
  return tensors[static_cast<size_t>(it - names.begin())];
}

std::vector<StateEntry> state_entries(const AttentionSpec& spec, int64_t value_width) {
  const int64_t pairs = spec.pair_channels();
  std::vector<StateEntry> entries;
  const auto values = [&](const char* name, const char* of_pairs) {
    entries.push_back({name, value_width});
    if (pairs > 0) entries.push_back({of_pairs, pairs});
  };
  switch (spec.normalizer.kind) {
    case Kind::softmax:
    case Kind::signed_softmax:
      values("o", "pairs");
      entries.push_back({"lse", 0});
      if (spec.counted.defined()) entries.push_back({"counted_lse", 0});
      if (spec.normalizer.epsilon > 0) entries.insert(entries.end(), {{"top", 0}, {"top_parts", 0}});
      break;
    case Kind::sum:
      values("o", "pairs");
      entries.push_back({"l", 0});
      break;
    case Kind::z_score:
      entries.insert(entries.end(), {{"n", 0}, {"mean", 0}, {"M2", 0}});
      values("A", "pairs_A");
      values("V", "pairs_V");
      break;
    default:
      values("o", "pairs");
      if (spec.normalizer.divisor != Normalizer::Divisor::one) entries.push_back({"count", 0});
  }
  return entries;
}

int64_t state_bytes(const AttentionSpec& spec, int64_t B, int64_t H, int64_t M, int64_t value_width,
                    int64_t element_size) {
  int64_t width = 0;
  for (const auto& entry : state_entries(spec, value_width)) width += std::max<int64_t>(entry.width, 1);
  return B * H * M * width * element_size;
}

State absorb(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
             const AttentionArguments& arguments, const std::optional<c10::SymInt>& keys) {
  spec.validate();
  Source source{widened(q), widened(k), widened(v), spec, ops::by_name(spec, arguments)};
  source.arguments.sinks = at::Tensor();
  for (auto& [name, pair] : source.arguments.named_operands) pair = {widened(pair.first), widened(pair.second)};
  if (keys) source.spec = ops::with_lengths(spec, q.sym_size(2), *keys, source.arguments);
  require(!reads_keys(source.spec), "absorb", "keys, the number of keys of all sources, since the spec reads keys()",
          "none");
  switch (spec.normalizer.kind) {
    case Kind::softmax:
      return softmax_state(source);
    case Kind::signed_softmax:
      return signed_softmax_state(source);
    case Kind::sum:
      return sum_state(source);
    case Kind::z_score:
      return z_score_state(source);
    default:
      return added_state(source);
  }
}

}  // namespace regard
