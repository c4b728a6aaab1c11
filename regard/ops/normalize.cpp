#include "regard/ops/normalize.h"

#include <limits>

namespace regard::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::Tensor positive_or_one(const at::Tensor& t) { return at::where(t.gt(0), t, at::ones({}, t.options())); }

bool empty_rows(const at::Tensor& scores) { return scores.sym_size(-1) == 0; }

// exp(s - m) over the counted pairs divided by their sum (with the sinks'), and the log of that sum.
Normalized softmax_of(const at::Tensor& scores, const at::Tensor& keep, const at::Tensor& counted,
                      const at::Tensor& sinks, bool detach) {
  at::Tensor z;
  if (sinks.defined()) z = sinks.to(scores.scalar_type()).unsqueeze(0).unsqueeze(2);  // (1,H,1,S)
  const at::Tensor s = masked(scores, counted, -kInfinity);
  at::Tensor top;
  if (!empty_rows(s)) top = s.detach().amax(-1, true);
  if (z.defined() && z.sym_size(-1) != 0) {
    const at::Tensor sink_top = z.detach().amax(-1, true);
    top = top.defined() ? at::maximum(top, sink_top)
                        : sink_top.expand_symint({s.sym_size(0), s.sym_size(1), s.sym_size(2), 1});
  }
  if (!top.defined()) top = at::zeros_symint({s.sym_size(0), s.sym_size(1), s.sym_size(2), 1}, s.options());
  // A row without keys has no maximum; a NaN score must not reach the masked pairs of its row.
  top = at::where(at::isfinite(top), top, at::zeros({}, top.options()));

  const at::Tensor e = at::exp(at::sub(s, top));  // 0 where not counted
  at::Tensor sum = e.sum(-1, true), e_sinks;
  if (z.defined()) {
    e_sinks = at::exp(at::sub(z, top));
    sum = at::add(sum, e_sinks.sum(-1, true));
  }
  const at::Tensor safe = positive_or_one(sum);
  const at::Tensor divisor = detach ? safe.detach() : safe;
  Normalized out;
  out.shares = at::div(e, safe);
  if (z.defined()) out.sink_shares = at::div(e_sinks, safe);
  out.statistic =
      at::where(sum.gt(0), at::add(top, at::log(safe)), at::full({}, -kInfinity, sum.options())).squeeze(-1);
  // A NaN score must reach its row, which `sum > 0` would hide.
  out.statistic = at::where(at::isnan(sum).squeeze(-1), sum.squeeze(-1), out.statistic);
  if (keep.is_same(counted)) {
    out.weights = detach ? at::div(e, divisor) : out.shares;
  } else {
    const at::Tensor kept = at::div(at::exp(at::sub(masked(scores, keep, -kInfinity), top)), divisor);
    out.weights = at::where(sum.gt(0), kept, at::zeros({}, kept.options()));
  }
  return out;
}

at::Tensor divisor_of(const Normalizer& normalizer, const at::Tensor& scores, const at::Tensor& keep) {
  const auto options = scores.options();
  if (normalizer.divisor == Normalizer::Divisor::one) return at::ones({}, options);
  if (normalizer.divisor == Normalizer::Divisor::keys || !keep.defined())
    return at::full({}, c10::Scalar(scores.sym_size(-1)), options).clamp_min(1);
  return keep.expand_symint(scores.sym_sizes()).to(scores.scalar_type()).sum(-1, true).clamp_min(1);
}

at::Tensor count_of(const at::Tensor& counted, const at::Tensor& scores) {
  if (!counted.defined()) return at::full({}, c10::Scalar(scores.sym_size(-1)), scores.options()).clamp_min(1);
  return counted.expand_symint(scores.sym_sizes()).to(scores.scalar_type()).sum(-1, true).clamp_min(1);
}

at::Tensor reciprocal_or_zero(const at::Tensor& t) {
  return at::where(t.gt(0), at::reciprocal(positive_or_one(t)), at::zeros({}, t.options()));
}

// sqrt(t) with the derivative 0 at 0.
at::Tensor root_of(const at::Tensor& t) {
  return at::where(t.gt(0), at::sqrt(positive_or_one(t)), at::zeros({}, t.options()));
}

// -2 times the derivative of z_score_rate by the variance.
at::Tensor z_score_bend(const Normalizer& normalizer, const at::Tensor& rate, const at::Tensor& variance,
                        const at::Tensor& count) {
  using Place = Normalizer::EpsilonPlace;
  if (normalizer.epsilon_place == Place::outside)
    return at::mul(at::square(rate), reciprocal_or_zero(root_of(variance)));
  const at::Tensor cube = at::pow(rate, 3);
  if (normalizer.epsilon_place == Place::inside) return cube;
  return at::mul(cube, at::div(count, at::add(count, normalizer.epsilon)));
}

struct Moments {
  at::Tensor count, variance, centered, rate;  // n, biased variance, s - mean, what s - mean is multiplied by
};

// Rows of one counted key have variance 0: with epsilon 0 their weight is 0, not NaN.
Moments moments_of(const Normalizer& normalizer, const at::Tensor& scores, const at::Tensor& counted) {
  const at::Tensor n = count_of(counted, scores);
  const at::Tensor mean = at::div(masked(scores, counted, 0).sum(-1, true), n);
  const at::Tensor centered = at::sub(scores, mean);
  const at::Tensor square = masked(at::square(centered), counted, 0);
  const at::Tensor variance = at::div(square.sum(-1, true), n);
  const at::Tensor rate = z_score_rate(normalizer, variance, n);
  return {n, variance, centered, normalizer.detach ? rate.detach() : rate};
}

// sign(s) e / (sum e + epsilon), e = exp(|s| - max |s|); scores of exactly 0 are left out. The share of epsilon grows
// with the maximum, which therefore carries a gradient: to the first largest.
Normalized signed_softmax_with_epsilon(const at::Tensor& scores, const at::Tensor& keep, const at::Tensor& counted,
                                       const Normalizer& normalizer) {
  const at::Tensor sign = at::sign(scores.detach());
  const at::Tensor nonzero = sign.ne(0), exists = counted.defined() ? at::logical_and(nonzero, counted) : nonzero;
  const at::Tensor magnitude = at::mul(scores, sign), s = masked(magnitude, exists, -kInfinity);
  const at::Tensor first = s.detach().argmax(-1, true);
  at::Tensor top = s.gather(-1, first);
  top = at::where(at::isfinite(top), top, at::zeros({}, top.options()));

  const at::Tensor e = at::exp(at::sub(s, top)), sum = e.sum(-1, true), some = sum.gt(0);
  const at::Tensor total = at::where(some, at::add(sum, normalizer.epsilon), at::ones({}, sum.options()));
  const at::Tensor divisor = normalizer.detach ? total.detach() : total;
  const auto columns = at::arange(c10::Scalar(scores.sym_size(-1)), first.options());
  const at::Tensor largest = at::logical_and(columns.eq(first), some).to(scores.scalar_type());
  Normalized out;
  out.shares = at::div(at::add(e, at::mul(largest, normalizer.epsilon)), total);
  out.statistic = at::where(some, at::add(top, at::log(total)), at::full({}, -kInfinity, sum.options())).squeeze(-1);
  out.statistic = at::where(at::isnan(sum).squeeze(-1), sum.squeeze(-1), out.statistic);
  at::Tensor kept = e;  // 0 in a row without keys
  if (!keep.is_same(counted)) {
    kept = at::exp(at::sub(masked(magnitude, keep, -kInfinity), top));
    kept = at::where(some, kept, at::zeros({}, kept.options()));
  }
  out.weights = at::mul(masked(sign, keep, 0), at::div(kept, divisor));
  return out;
}

at::Tensor row_sum(const at::Tensor& t) { return t.sum(-1, true); }

}  // namespace

at::Tensor z_score_rate(const Normalizer& normalizer, const at::Tensor& variance, const at::Tensor& count) {
  using Place = Normalizer::EpsilonPlace;
  const double epsilon = normalizer.epsilon;
  if (normalizer.epsilon_place == Place::outside) return reciprocal_or_zero(at::add(root_of(variance), epsilon));
  if (normalizer.epsilon_place == Place::inside) return reciprocal_or_zero(root_of(at::add(variance, epsilon)));
  return reciprocal_or_zero(root_of(at::div(at::add(at::mul(variance, count), epsilon), at::add(count, epsilon))));
}

at::Tensor masked(const at::Tensor& t, const at::Tensor& mask, double fill) {
  return mask.defined() ? at::where(mask, t, at::full({}, fill, t.options())) : t;
}

Normalized normalize(const Normalizer& normalizer, const at::Tensor& scores, const at::Tensor& keep,
                     const at::Tensor& counted, const at::Tensor& sinks) {
  using Kind = Normalizer::Kind;
  Normalized out;
  switch (normalizer.kind) {
    case Kind::softmax:
      return softmax_of(scores, keep, counted, sinks, normalizer.detach);
    case Kind::signed_softmax: {
      if (normalizer.epsilon > 0 && !empty_rows(scores))
        return signed_softmax_with_epsilon(scores, keep, counted, normalizer);
      const at::Tensor sign = at::sign(scores.detach());
      out = softmax_of(at::mul(scores, sign), keep, counted, {}, normalizer.detach);
      out.weights = at::mul(masked(sign, keep, 0), out.weights);
      return out;
    }
    case Kind::sum: {
      const at::Tensor positive = at::relu(scores);
      out.shares = row_sum(masked(positive, counted, 0));
      const at::Tensor sum = out.shares.clamp_min(normalizer.floor), safe = positive_or_one(sum);
      out.weights = masked(at::div(positive, normalizer.detach ? safe.detach() : safe), keep, 0);
      out.statistic = at::where(sum.gt(0), at::log(safe), at::full({}, -kInfinity, sum.options())).squeeze(-1);
      return out;
    }
    case Kind::sigmoid:
      out.weights = masked(at::sigmoid(scores), keep, 0);
      break;
    case Kind::relu:
      out.weights = masked(at::div(at::relu(scores), divisor_of(normalizer, scores, keep)), keep, 0);
      break;
    case Kind::identity:
      out.weights = masked(at::div(scores, divisor_of(normalizer, scores, keep)), keep, 0);
      break;
    case Kind::z_score: {
      const Moments moments = moments_of(normalizer, scores, counted);
      out.weights = masked(at::mul(moments.centered, moments.rate), keep, 0);
      break;
    }
  }
  out.statistic = at::zeros_symint({scores.sym_size(0), scores.sym_size(1), scores.sym_size(2)}, scores.options());
  return out;
}

NormalizedGradient normalize_backward(const Normalizer& normalizer, const Normalized& result, const at::Tensor& scores,
                                      const at::Tensor& keep, const at::Tensor& counted, const at::Tensor& grad_weights,
                                      const at::Tensor& grad_statistic) {
  using Kind = Normalizer::Kind;
  const at::Tensor g = masked(grad_weights, keep, 0);
  at::Tensor grad_row;
  if (grad_statistic.defined()) grad_row = grad_statistic.unsqueeze(-1);
  switch (normalizer.kind) {
    case Kind::softmax:
    case Kind::signed_softmax: {
      // d s_j = a_j g_j - p_j (sum_k a_k g_k - d statistic); for magnitudes: times sign(s_j)
      const at::Tensor direct = at::mul(result.weights, g);
      at::Tensor row = normalizer.detach ? at::zeros({}, g.options()) : row_sum(direct);
      if (grad_row.defined()) row = at::sub(row, grad_row);
      at::Tensor own = masked(direct, keep, 0), shared = masked(at::mul(result.shares, row), counted, 0);
      if (normalizer.kind == Kind::signed_softmax) {
        const at::Tensor sign = at::sign(scores.detach());
        own = masked(at::mul(own, sign), keep, 0);
        shared = masked(at::mul(shared, sign), counted, 0);
      }
      NormalizedGradient out;
      out.scores = at::sub(own, shared);
      if (result.sink_shares.defined())
        out.sinks = at::neg(at::mul(result.sink_shares, row)).sum(at::IntArrayRef{0, 2});
      return out;
    }
    case Kind::sum: {
      // a_j = r_j / L, L = max(sum r, floor): d r_j = g_j / L + ([above the floor] / L) (d statistic - sum_k a_k g_k)
      const at::Tensor sum = positive_or_one(result.shares.clamp_min(normalizer.floor));
      at::Tensor shared = normalizer.detach ? at::zeros({}, g.options()) : row_sum(at::mul(result.weights, g));
      if (grad_row.defined()) shared = at::sub(shared, grad_row);
      shared = at::where(result.shares.ge(normalizer.floor), at::div(shared, sum), at::zeros({}, g.options()));
      const at::Tensor own = at::div(g, normalizer.detach ? sum.detach() : sum);
      const at::Tensor d = at::sub(own, masked(shared.expand_symint(g.sym_sizes()), counted, 0));
      return {at::where(scores.gt(0), d, at::zeros({}, d.options())), {}};
    }
    case Kind::sigmoid:
      return {masked(at::mul(at::mul(g, result.weights), at::rsub(result.weights, 1)), keep, 0), {}};
    case Kind::relu:
      return {at::where(scores.gt(0), at::div(g, divisor_of(normalizer, scores, keep)), at::zeros({}, g.options())),
              {}};
    case Kind::identity:
      return {at::div(g, divisor_of(normalizer, scores, keep)), {}};
    case Kind::z_score: {
      const Moments moments = moments_of(normalizer, scores, counted);
      const at::Tensor centered = masked(moments.centered, keep, 0);
      const at::Tensor scaled = at::mul(g, moments.rate);
      at::Tensor shared = at::div(row_sum(scaled), moments.count);
      if (!normalizer.detach) {
        const at::Tensor bend = z_score_bend(normalizer, moments.rate, moments.variance, moments.count);
        const at::Tensor slope = at::div(at::mul(row_sum(at::mul(g, centered)), bend), moments.count);
        shared = at::add(shared, at::mul(slope, masked(moments.centered, counted, 0)));
      }
      return {at::sub(scaled, masked(shared.expand_symint(g.sym_sizes()), counted, 0)), {}};
    }
  }
  return {};
}

}  // namespace regard::ops
