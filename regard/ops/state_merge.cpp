// How states become one, and one state becomes an output.
//
// A state is turned into terms that add over the parts of the keys. Against the reference of the whole no term
// overflows (softmax: exp(lse - lse of the whole) <= 1) and none cancels (z-score: moments about the mean of the whole,
// which is Chan's rule; raw power sums would lose all digits of a variance that is small beside the mean).

#include <cmath>
#include <limits>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/ops/normalize.h"
#include "regard/ops/state.h"

namespace regard {
namespace {

using Kind = Normalizer::Kind;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool softmax_like(const AttentionSpec& spec) {
  return spec.normalizer.kind == Kind::softmax || spec.normalizer.kind == Kind::signed_softmax;
}

at::Tensor constant_like(const at::Tensor& t, double value) {
  return at::full({}, value, t.options().requires_grad(std::nullopt));
}

at::Tensor finite_or_zero(const at::Tensor& t) { return at::where(t.eq(-kInfinity), constant_like(t, 0), t); }

at::Tensor positive_or_one(const at::Tensor& t) { return at::where(t.gt(0), t, constant_like(t, 1)); }

/// t (B, H, M, width) times a factor (B, H, M), where what a factor of 0 hides (some libraries leave NaN in the output
/// of an empty row) reaches nothing.
at::Tensor weighted(const at::Tensor& t, const at::Tensor& factor) {
  const at::Tensor f = factor.unsqueeze(-1);
  return at::mul(t.masked_fill(f.eq(0), 0), f);
}

at::Tensor divided(const at::Tensor& t, const at::Tensor& divisor) { return at::div(t, divisor.unsqueeze(-1)); }

/// log of a positive number, -inf at 0; without a NaN in the gradient there.
at::Tensor log_or_empty(const at::Tensor& t) {
  const at::Tensor log = at::log(positive_or_one(t)).masked_fill(t.eq(0), -kInfinity);
  return at::where(at::isnan(t), t, log);  // a NaN score must reach its row
}

void check_alike(const State& a, const State& b) {
  if (a.names == b.names) {
    for (size_t i = 0; i < a.names.size(); ++i)
      if (a.tensors[i].sym_sizes() != b.tensors[i].sym_sizes())
        fail("merge", "states of one shape", "two shapes of entry '" + a.names[i] + "'");
    return;
  }
  fail("merge", "states of one kind, with entries " + quoted_list(a.names), quoted_list(b.names));
}

/// A state whose denominator counts what it keeps, beside one that says what it counts.
State with_counted(const State& state) {
  if (state.find("counted_lse").defined()) return state;
  State out = state;
  out.set("counted_lse", state["lse"]);
  return out;
}

/// How many parts of a state have `top` as their largest: they share its gradient.
at::Tensor parts_at(const State& state, const at::Tensor& top) {
  return at::where(state["top"].eq(top), state["top_parts"], constant_like(top, 0));
}

/// A reference for the sum of two.
State reference_between(const AttentionSpec& spec, const State& a, const State& b) {
  State out;
  if (softmax_like(spec)) {
    for (const char* name : {"lse", "counted_lse"}) {
      if (!a.find(name).defined()) continue;
      out.set(name, finite_or_zero(at::maximum(a[name], b[name]).detach()));
    }
    if (a.find("top").defined()) {
      const at::Tensor top = at::maximum(a["top"], b["top"]).detach();
      out.set("top", top);
      out.set("top_parts", at::add(parts_at(a, top), parts_at(b, top)));
    }
  } else if (spec.normalizer.kind == Kind::z_score) {
    const at::Tensor n = at::add(a["n"], b["n"]);
    const at::Tensor mean = at::div(at::add(at::mul(a["n"], a["mean"]), at::mul(b["n"], b["mean"])), n.clamp_min(1));
    out.set("mean", mean.detach());
  }
  return out;
}

/// 0 with the gradient of this part's share of the largest.
at::Tensor top_term(const State& state, const State& reference) {
  const at::Tensor share = at::div(parts_at(state, reference["top"]), reference["top_parts"]);
  const at::Tensor difference = at::sub(state["top"], reference["top"]);
  return at::where(share.gt(0), at::mul(difference, share), constant_like(share, 0));
}

}  // namespace

State reference_of(const AttentionSpec& spec, const State& whole) {
  State out;
  if (softmax_like(spec)) {
    for (const char* name : {"lse", "counted_lse"})
      if (whole.find(name).defined()) out.set(name, finite_or_zero(whole[name].detach()));
    for (const char* name : {"top", "top_parts"})
      if (whole.find(name).defined()) out.set(name, whole[name].detach());
  } else if (spec.normalizer.kind == Kind::z_score) {
    out.set("mean", whole["mean"].detach());
  }
  return out;
}

std::vector<at::Tensor> terms_of(const AttentionSpec& spec, const State& state, const State& reference) {
  std::vector<at::Tensor> terms;
  if (softmax_like(spec)) {
    const at::Tensor share = at::exp(at::sub(state["lse"], reference["lse"]));
    const at::Tensor factor = spec.normalizer.detach ? share.detach() : share;
    for (size_t i = 0; i < state.names.size(); ++i) {
      const std::string& name = state.names[i];
      if (name == "lse")
        terms.push_back(share);
      else if (name == "counted_lse")
        terms.push_back(at::exp(at::sub(state.tensors[i], reference[name])));
      else if (name == "top")
        terms.push_back(top_term(state, reference));
      else if (name == "top_parts")
        terms.push_back(parts_at(state, reference["top"]));
      else
        terms.push_back(weighted(state.tensors[i], factor));
    }
    return terms;
  }
  if (spec.normalizer.kind != Kind::z_score) return state.tensors;
  const at::Tensor shift = at::sub(state["mean"], reference["mean"]), n = state["n"];
  for (size_t i = 0; i < state.names.size(); ++i) {
    const at::Tensor& t = state.tensors[i];
    const std::string& name = state.names[i];
    if (name == "mean")
      terms.push_back(at::mul(n, shift));
    else if (name == "M2")
      terms.push_back(at::add(t, at::mul(n, at::square(shift))));
    else if (name == "A")
      terms.push_back(at::add(t, at::mul(shift.unsqueeze(-1), state["V"])));
    else if (name == "pairs_A")
      terms.push_back(at::add(t, at::mul(shift.unsqueeze(-1), state["pairs_V"])));
    else
      terms.push_back(t);
  }
  return terms;
}

State state_of(const AttentionSpec& spec, const State& like, const std::vector<at::Tensor>& terms,
               const State& reference) {
  State sums;
  sums.names = like.names;
  sums.tensors = terms;
  State out;
  if (softmax_like(spec)) {
    const at::Tensor share = sums["lse"], safe = positive_or_one(share);
    const at::Tensor divisor = spec.normalizer.detach ? safe.detach() : safe;
    for (size_t i = 0; i < terms.size(); ++i) {
      const std::string& name = sums.names[i];
      if (name == "lse" || name == "counted_lse")
        out.set(name, at::add(reference[name], log_or_empty(terms[i])));
      else if (name == "top")
        out.set(name, at::add(reference[name], terms[i]));
      else
        out.set(name, name == "top_parts" ? terms[i] : divided(terms[i], divisor));
    }
    return out;
  }
  if (spec.normalizer.kind != Kind::z_score) return sums;
  const at::Tensor n = sums["n"], shift = at::div(sums["mean"], n.clamp_min(1));
  for (size_t i = 0; i < terms.size(); ++i) {
    const std::string& name = sums.names[i];
    if (name == "mean")
      out.set(name, at::add(reference["mean"], shift));
    else if (name == "M2")
      out.set(name, at::sub(terms[i], at::mul(n, at::square(shift))));
    else if (name == "A")
      out.set(name, at::sub(terms[i], at::mul(shift.unsqueeze(-1), sums["V"])));
    else if (name == "pairs_A")
      out.set(name, at::sub(terms[i], at::mul(shift.unsqueeze(-1), sums["pairs_V"])));
    else
      out.set(name, terms[i]);
  }
  return out;
}

State merge(const AttentionSpec& spec, const State& earlier, const State& later) {
  if (!earlier.defined()) return later;
  if (!later.defined()) return earlier;
  State a = earlier, b = later;
  if (softmax_like(spec) && a.find("counted_lse").defined() != b.find("counted_lse").defined())
    a = with_counted(a), b = with_counted(b);
  check_alike(a, b);
  const State reference = reference_between(spec, a, b);
  const auto first = terms_of(spec, a, reference), second = terms_of(spec, b, reference);
  std::vector<at::Tensor> sums;
  for (size_t i = 0; i < first.size(); ++i) sums.push_back(at::add(first[i], second[i]));
  return state_of(spec, a, sums, reference);
}

namespace {

/// Softmax outputs over their kept pairs, rescaled to the denominator with the counted pairs and the sinks.
AttentionOutput finish_softmax(const AttentionSpec& spec, const State& state, const at::Tensor& sinks) {
  const at::Tensor counted = state.find("counted_lse");
  at::Tensor lse = counted.defined() ? counted : state["lse"];
  if (sinks.defined()) {
    const at::Tensor logits = sinks.dim() == 1 ? sinks.unsqueeze(1) : sinks;
    const at::Tensor all = at::logsumexp(logits.to(lse.scalar_type()), 1).view({1, -1, 1});
    lse = at::logaddexp(lse, all);
  }
  const at::Tensor pairs = state.find("pairs"), top = state.find("top");
  if (top.defined()) {
    const at::Tensor extra = at::logaddexp(lse, at::add(top, std::log(spec.normalizer.epsilon)));
    lse = at::where(lse.eq(-kInfinity), lse, extra);
  }
  if (!counted.defined() && !sinks.defined() && !top.defined()) return {state["o"], lse, pairs};
  // Nothing in the denominator, nothing in the output.
  const at::Tensor none = lse.eq(-kInfinity);
  const at::Tensor share = at::exp(at::sub(state["lse"].masked_fill(none, -kInfinity), lse.masked_fill(none, 0)));
  const at::Tensor factor = spec.normalizer.detach ? share.detach() : share;
  return {weighted(state["o"], factor), lse, pairs.defined() ? weighted(pairs, factor) : pairs};
}

AttentionOutput finish_sum(const AttentionSpec& spec, const State& state) {
  const at::Tensor sum = state["l"].clamp_min(spec.normalizer.floor), safe = positive_or_one(sum);
  const at::Tensor divisor = spec.normalizer.detach ? safe.detach() : safe;
  const at::Tensor pairs = state.find("pairs");
  const at::Tensor statistic = at::where(sum.gt(0), at::log(safe), constant_like(sum, -kInfinity));
  return {divided(state["o"], divisor), statistic, pairs.defined() ? divided(pairs, divisor) : pairs};
}

AttentionOutput finish_z_score(const AttentionSpec& spec, const State& state) {
  const at::Tensor n = state["n"].clamp_min(1);
  const at::Tensor rate = ops::z_score_rate(spec.normalizer, at::div(state["M2"], n), n);
  const at::Tensor factor = (spec.normalizer.detach ? rate.detach() : rate).unsqueeze(-1);
  const at::Tensor pairs = state.find("pairs_A");
  return {at::mul(state["A"], factor), at::zeros_like(rate.detach()), pairs.defined() ? at::mul(pairs, factor) : pairs};
}

AttentionOutput finish_added(const State& state) {
  const at::Tensor& o = state["o"];
  AttentionOutput out{
      o, at::zeros_symint({o.sym_size(0), o.sym_size(1), o.sym_size(2)}, o.options().requires_grad(std::nullopt)),
      state.find("pairs")};
  const at::Tensor count = state.find("count");
  if (!count.defined()) return out;
  const at::Tensor divisor = count.clamp_min(1);
  out.o = divided(out.o, divisor);
  if (out.pairs.defined()) out.pairs = divided(out.pairs, divisor);
  return out;
}

}  // namespace

AttentionOutput finish(const AttentionSpec& spec, const State& state, const at::Tensor& sinks, at::ScalarType dtype) {
  require(state.defined(), "finish", "a state into which something was absorbed", "none");
  require(sinks.defined() == spec.normalizer.sinks, "finish",
          spec.normalizer.sinks ? "sinks, because the normalizer has sink logits"
                                : "no sinks, because the normalizer has none",
          sinks.defined() ? "some" : "none");
  AttentionOutput out;
  switch (spec.normalizer.kind) {
    case Kind::softmax:
    case Kind::signed_softmax:
      out = finish_softmax(spec, state, sinks);
      break;
    case Kind::sum:
      out = finish_sum(spec, state);
      break;
    case Kind::z_score:
      out = finish_z_score(spec, state);
      break;
    default:
      out = finish_added(state);
  }
  if (!out.pairs.defined())
    out.pairs = at::zeros_symint({out.o.sym_size(0), out.o.sym_size(1), out.o.sym_size(2), 0},
                                 out.o.options().requires_grad(std::nullopt));
  out.o = out.o.to(dtype);
  return out;
}

}  // namespace regard
