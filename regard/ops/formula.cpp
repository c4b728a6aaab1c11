#include "regard/ops/formula.h"

#include "regard/base/error.h"
#include "regard/ops/dropout.h"
#include "regard/ops/evaluate.h"
#include "regard/ops/normalize.h"

namespace regard::ops {
namespace {

/// What forward and backward of a stripe share.
struct Body {
  Evaluation evaluation;
  std::shared_ptr<const Plan> held;  // keeps plan alive
  const Plan& plan;
  at::Tensor keep, counted, scores, factor;  // factor: weight * dropout, undefined when 1
  Normalized normalized;

  Body(const Call& call, const Rows& rows)
      : evaluation(call, rows), held(plan_of(call.spec)), plan(*held), keep(evaluation.keep()) {
    counted = plan.counted_as_keep ? keep : evaluation.counted();
    const at::Tensor rows_of_q = rows.of(call.q, 2);
    const std::vector<c10::SymInt> shape = {call.B(), call.H(), rows_of_q.sym_size(2), call.N()};
    scores = evaluation.value(plan.score).to(call.compute()).expand_symint(shape);
    normalized = normalize(call.spec->normalizer, scores, keep, counted, call.sinks);
    if (!plan.weight_one) factor = evaluation.value(plan.weight).to(call.compute());
    if (call.spec->dropout > 0) {
      const at::Tensor kept = dropout_factor(call, rows);
      factor = factor.defined() ? at::mul(factor, kept) : kept;
    }
  }

  at::Tensor weights() {
    return factor.defined() ? masked(at::mul(normalized.weights, factor), keep, 0) : normalized.weights;
  }

  // One channel of a pair output: `t` where the pair's bucket is the channel.
  at::Tensor in_bucket(const Plan::Pair& pair, int64_t channel, const at::Tensor& t) {
    if (pair.bucket < 0) return t;
    return at::where(evaluation.value(pair.bucket).eq(channel), t, at::zeros({}, t.options()));
  }
};

at::Tensor pair_sums(const Call& call, Body& body, const at::Tensor& weights) {
  std::vector<at::Tensor> channels;
  for (const auto& pair : body.plan.pairs) {
    const at::Tensor term = masked(at::mul(weights, body.evaluation.value(pair.value)), body.keep, 0);
    for (int64_t c = 0; c < pair.buckets; ++c) channels.push_back(body.in_bucket(pair, c, term).sum(-1));
  }
  if (channels.empty())
    return at::zeros_symint({weights.sym_size(0), weights.sym_size(1), weights.sym_size(2), 0},
                            call.q.options().dtype(call.compute()));
  return at::stack(channels, -1);
}

// sum_c e_c(i, j) * grad_pairs[.., c] over the channels of one pair output: what weights times it sum.
at::Tensor pair_cotangent(Body& body, const Plan::Pair& pair, int64_t first, const at::Tensor& grad_pairs) {
  at::Tensor sum;
  for (int64_t c = 0; c < pair.buckets; ++c) {
    const at::Tensor g = body.in_bucket(pair, c, grad_pairs.select(-1, first + c).unsqueeze(-1));
    sum = sum.defined() ? at::add(sum, g) : g;
  }
  return sum;
}

void accumulate(at::Tensor& sum, const at::Tensor& term) { sum = sum.defined() ? at::add(sum, term) : term; }

}  // namespace

Stripe attend(const Call& call, const Rows& rows, const WeightChange& change) {
  Body body(call, rows);
  const at::Tensor weights = change ? change(body.weights()) : body.weights();
  const at::Tensor v = repeat_heads(call.v.to(call.compute()), call.H());
  const at::Tensor pairs = pair_sums(call, body, weights);
  body.evaluation.check_ranges();
  return {body.keep.defined() ? guarded_matmul(weights, body.keep, v, call.finite) : at::matmul(weights, v),
          body.normalized.statistic, pairs};
}

at::Tensor attention_weights(const Call& call, const Rows& rows) {
  Body body(call, rows);
  body.evaluation.check_ranges();
  return body.weights();
}

std::vector<int64_t> capture_row_dims(const Call& call) {
  constexpr int64_t kUnseen = -2;
  std::vector<int64_t> dims(call.captures.size(), kUnseen);
  Evaluation evaluation(call, all_rows(call));
  const auto plan = plan_of(call.spec);
  for (const auto& leaf : plan->leaves) {
    const auto [capture, dim] = evaluation.row_dim(leaf.entry);
    if (capture < 0) continue;
    int64_t& known = dims[static_cast<size_t>(capture)];
    known = known == kUnseen || known == dim ? dim : -1;
  }
  for (auto& dim : dims) dim = std::max<int64_t>(dim, -1);
  return dims;
}

StripeGradient attend_backward(const Call& call, const Rows& rows, const at::Tensor& grad_o, const at::Tensor& grad_lse,
                               const at::Tensor& grad_pairs, const Wanted& wanted) {
  Body body(call, rows);
  Evaluation& evaluation = body.evaluation;
  const Plan& plan = body.plan;
  const at::ScalarType compute = call.compute();
  const at::Tensor v = repeat_heads(call.v.to(compute), call.H()), go = grad_o.to(compute);
  const at::Tensor weights = body.weights();
  StripeGradient out;
  if (wanted.v) {
    at::Tensor keep;
    if (body.keep.defined()) keep = body.keep.expand_symint(weights.sym_sizes()).transpose(-2, -1);
    out.v = sum_heads(guarded_matmul(weights.transpose(-2, -1), keep, go, call.finite), call.v.sym_size(1));
  }

  // total_ij: the cotangent of the whole weight of a pair.
  at::Tensor total = masked(at::matmul(go, v.transpose(-2, -1)), body.keep, 0);
  std::vector<at::Tensor> pair_grads;
  int64_t channel = 0;
  for (const auto& pair : plan.pairs) {
    at::Tensor g;
    if (grad_pairs.defined()) {
      g = pair_cotangent(body, pair, channel, grad_pairs.to(compute));
      total = at::add(total, masked(at::mul(g, evaluation.value(pair.value)), body.keep, 0));
      pair_grads.push_back(masked(at::mul(g, weights), body.keep, 0));
    } else {
      pair_grads.emplace_back();
    }
    channel += pair.buckets;
  }
  const at::Tensor grad_normalized = body.factor.defined() ? masked(at::mul(total, body.factor), body.keep, 0) : total;
  const auto scores = normalize_backward(call.spec->normalizer, body.normalized, body.scores, body.keep, body.counted,
                                         grad_normalized, grad_lse.defined() ? grad_lse.to(compute) : at::Tensor());
  out.sinks = scores.sinks;

  at::Tensor grad_weight;  // of the spec's weight expression
  if (!plan.weight_one) {
    grad_weight = at::mul(total, body.normalized.weights);
    if (call.spec->dropout > 0) grad_weight = at::mul(grad_weight, dropout_factor(call, rows));
  }

  out.captures.resize(call.captures.size());
  out.operands.resize(call.operands.size());
  std::vector<std::vector<Evaluation::CaptureGradient>> reads(call.captures.size());
  const auto chained = [&](const at::Tensor& g, int derivative) {
    // Where the cotangent is zero the derivative may be NaN (a masked pair): it passes nothing.
    const at::Tensor product = at::mul(g, evaluation.value(derivative));
    return at::where(g.eq(0), at::zeros({}, product.options()), product);
  };
  for (const auto& leaf : plan.leaves) {
    const bool is_dot = plan.graph.entries[static_cast<size_t>(leaf.entry)].expr.op() == Op::dot;
    const bool is_operand = is_dot && !plan.graph.entries[static_cast<size_t>(leaf.entry)].expr.node().name.empty();
    if (is_dot ? (is_operand ? !wanted.operands : !(wanted.q || wanted.k)) : !wanted.captures) continue;
    at::Tensor d;
    if (leaf.score >= 0) accumulate(d, chained(scores.scores, leaf.score));
    if (leaf.weight >= 0) accumulate(d, chained(grad_weight, leaf.weight));
    for (size_t p = 0; p < leaf.pairs.size(); ++p)
      if (leaf.pairs[p] >= 0 && pair_grads[p].defined()) accumulate(d, chained(pair_grads[p], leaf.pairs[p]));
    if (!d.defined()) continue;
    if (is_dot) {
      const auto g = evaluation.dot_gradient(leaf.entry, d);
      accumulate(g.operand < 0 ? out.q : out.operands[2 * static_cast<size_t>(g.operand)], g.q);
      accumulate(g.operand < 0 ? out.k : out.operands[2 * static_cast<size_t>(g.operand) + 1], g.k);
    } else {
      const auto g = evaluation.capture_gradient(leaf.entry, d);
      reads[static_cast<size_t>(g.capture)].push_back(g);
    }
  }
  const auto owned = capture_row_dims(call);
  for (size_t c = 0; c < reads.size(); ++c) {
    if (reads[c].empty()) continue;
    for (const auto& read : reads[c]) {
      at::Tensor g = read.gradient;
      if (owned[c] < 0 && read.row_dim >= 0) {
        std::vector<c10::SymInt> before(static_cast<size_t>(g.dim()), 0);
        before[static_cast<size_t>(read.row_dim)] = rows.begin;
        g = pad_to(g, before, call.captures[c].sym_sizes());
      }
      accumulate(out.captures[c], g);
    }
  }
  return out;
}

}  // namespace regard::ops
