#include "tests/kernels/naive_row.h"

#include <algorithm>
#include <cmath>

namespace regard::kernels::testing {
namespace {

using Kind = Normalizer::Kind;
using Place = Normalizer::EpsilonPlace;

double sign(double x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }
double positive(double x) { return x > 0 ? x : 0; }

/// Softmax, of magnitudes where signed.
void exponentials(const Normalizer& normalizer, const std::vector<double>& sinks, Row& r) {
  const bool with_sign = normalizer.kind == Kind::signed_softmax;
  const auto size = [&](size_t j) { return with_sign ? std::abs(r.s[j]) : r.s[j]; };
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t j = 0; j < r.s.size(); ++j) top = r.counted[j] ? std::max(top, size(j)) : top;
  for (double sink : sinks) top = std::max(top, sink);
  for (size_t j = 0; j < r.s.size(); ++j) sum += r.counted[j] ? std::exp(size(j) - top) : 0;
  for (double sink : sinks) sum += std::exp(sink - top);
  r.lse = sum > 0 ? top + std::log(sum) : -std::numeric_limits<double>::infinity();
  for (size_t j = 0; j < r.s.size(); ++j) {
    const double e = (r.keep[j] || r.counted[j]) && sum > 0 ? std::exp(size(j) - r.lse) : 0;
    r.p[j] = with_sign ? sign(r.s[j]) * e : e;
    r.own[j] = with_sign ? sign(r.s[j]) * r.p[j] : e;
  }
}

void divided_by_sum(const Normalizer& normalizer, Row& r) {
  double sum = 0;
  for (size_t j = 0; j < r.s.size(); ++j) sum += r.counted[j] ? positive(r.s[j]) : 0;
  r.n = sum;
  r.denominator = std::max(sum, normalizer.floor);
  r.lse = std::log(r.denominator);
  if (r.denominator == 0) r.denominator = 1;
  for (size_t j = 0; j < r.s.size(); ++j) {
    r.p[j] = positive(r.s[j]) / r.denominator;
    r.own[j] = r.s[j] > 0 ? 1 / r.denominator : 0;
  }
}

void pair_by_pair(const Normalizer& normalizer, Row& r) {
  double divisor = 1;
  if (normalizer.divisor == Normalizer::Divisor::keys) divisor = static_cast<double>(r.s.size());
  if (normalizer.divisor == Normalizer::Divisor::kept)
    divisor = static_cast<double>(std::count(r.keep.begin(), r.keep.end(), true));
  divisor = std::max(1.0, divisor);
  for (size_t j = 0; j < r.s.size(); ++j) {
    const double s = r.s[j], gate = 1 / (1 + std::exp(-s));
    r.p[j] = normalizer.kind == Kind::sigmoid ? gate : (normalizer.kind == Kind::relu ? positive(s) : s) / divisor;
    r.own[j] = normalizer.kind == Kind::sigmoid ? gate * (1 - gate)
                                                : (normalizer.kind == Kind::relu && s <= 0 ? 0 : 1 / divisor);
  }
}

void standardized(const Normalizer& normalizer, Row& r) {
  for (size_t j = 0; j < r.s.size(); ++j) {
    r.n += r.counted[j];
    r.mean += r.counted[j] ? r.s[j] : 0;
  }
  r.n = std::max(1.0, r.n);
  r.mean /= r.n;
  for (size_t j = 0; j < r.s.size(); ++j) r.variance += r.counted[j] ? std::pow(r.s[j] - r.mean, 2) / r.n : 0;
  const double epsilon = normalizer.epsilon;
  r.denominator = normalizer.epsilon_place == Place::inside    ? std::sqrt(r.variance + epsilon)
                  : normalizer.epsilon_place == Place::outside ? std::sqrt(r.variance) + epsilon
                                                               : std::sqrt((r.n * r.variance + epsilon) / (r.n + epsilon));
  for (size_t j = 0; j < r.s.size(); ++j) {
    r.own[j] = r.denominator > 0 ? 1 / r.denominator : 0;
    r.p[j] = (r.s[j] - r.mean) * r.own[j];
  }
}

/// d denominator / d variance.
double widening(const Normalizer& normalizer, const Row& r) {
  if (normalizer.epsilon_place == Place::outside) return r.variance > 0 ? 0.5 / std::sqrt(r.variance) : 0;
  const double share = normalizer.epsilon_place == Place::inside ? 1 : r.n / (r.n + normalizer.epsilon);
  return r.denominator > 0 ? 0.5 * share / r.denominator : 0;
}

}  // namespace

void normalize(const Normalizer& normalizer, const std::vector<double>& sinks, Row& row) {
  row.p.resize(row.s.size());
  row.own.resize(row.s.size());
  switch (normalizer.kind) {
    case Kind::softmax:
    case Kind::signed_softmax:
      return exponentials(normalizer, sinks, row);
    case Kind::sum:
      return divided_by_sum(normalizer, row);
    case Kind::z_score:
      return standardized(normalizer, row);
    default:
      return pair_by_pair(normalizer, row);
  }
}

std::vector<double> slopes_through_sums(const Normalizer& normalizer, const Row& r, const std::vector<double>& g,
                                        double grad_lse) {
  std::vector<double> slopes(r.s.size());
  double weighted = 0, total = 0;
  for (size_t j = 0; j < r.s.size(); ++j) {
    weighted += g[j] * r.p[j];
    total += g[j];
  }
  if (normalizer.detach) weighted = 0;
  for (size_t k = 0; k < r.s.size(); ++k) {
    if (!r.counted[k]) continue;
    const double lse = std::isfinite(r.lse) ? grad_lse : 0;
    if (normalizer.kind == Kind::softmax || normalizer.kind == Kind::signed_softmax)
      slopes[k] = r.p[k] * (lse - weighted);
    if (normalizer.kind == Kind::sum && r.n >= normalizer.floor) slopes[k] = r.own[k] * (lse - weighted);
    if (normalizer.kind == Kind::z_score && r.denominator > 0) {
      const double by_variance = -weighted / r.denominator * widening(normalizer, r);
      slopes[k] = -total / r.denominator / r.n + by_variance * 2 * (r.s[k] - r.mean) / r.n;
    }
  }
  return slopes;
}

}  // namespace regard::kernels::testing
