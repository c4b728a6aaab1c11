#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/tile.h"

/// What the state of a row becomes at its end; the tile loops are in normalizers.inl.
namespace regard::kernels {

static_assert(static_cast<int>(Normalizer::Kind::z_score) + 1 == kNormalizers);

inline bool is_exponential(const Normalizer& normalizer) {
  return normalizer.kind == Normalizer::Kind::softmax || normalizer.kind == Normalizer::Kind::signed_softmax;
}

/// Whether absorbing needs to know the hidden pairs: their score of -inf does not give a weight of 0 and add nothing.
inline bool needs_masks(const Normalizer& normalizer) {
  using Kind = Normalizer::Kind;
  return normalizer.kind == Kind::signed_softmax || normalizer.kind == Kind::identity ||
         normalizer.kind == Kind::z_score || normalizer.divisor == Normalizer::Divisor::kept;
}

/// z_score: what s - mean is multiplied by, over n >= 1 counted keys. 0, not infinite, where nothing deviates.
template <class T>
T z_score_rate(const Normalizer& normalizer, T variance, T n) {
  using Place = Normalizer::EpsilonPlace;
  const T epsilon = static_cast<T>(normalizer.epsilon);
  T deviation = 0;
  if (normalizer.epsilon_place == Place::inside) deviation = std::sqrt(variance + epsilon);
  if (normalizer.epsilon_place == Place::outside) deviation = std::sqrt(variance) + epsilon;
  if (normalizer.epsilon_place == Place::inside_count) deviation = std::sqrt((n * variance + epsilon) / (n + epsilon));
  return deviation == 0 ? T(0) : 1 / deviation;
}

/// -2 times the derivative of the rate by the variance, over the rate.
template <class T>
T z_score_bend(const Normalizer& normalizer, T rate, T variance, T n) {
  using Place = Normalizer::EpsilonPlace;
  if (normalizer.epsilon_place == Place::outside) return variance > 0 ? rate / std::sqrt(variance) : T(0);
  if (normalizer.epsilon_place == Place::inside) return rate * rate;
  return rate * rate * n / (n + static_cast<T>(normalizer.epsilon));
}

/// relu and identity: 1 / divisor. `kept`: the row's keys, read where they are the divisor.
template <class T>
T divisor_rate(const Normalizer& normalizer, int64_t keys, T kept) {
  if (normalizer.divisor == Normalizer::Divisor::one) return 1;
  return 1 / std::max(T(1), normalizer.divisor == Normalizer::Divisor::keys ? static_cast<T>(keys) : kept);
}

template <class T>
struct FinishedRow {
  T factor;  ///< of the output
  T lse;     ///< 0 where nothing is divided by a sum
};

/// Of a normalizer without maximum; `sum` and `square` as in RowState.
template <class T>
FinishedRow<T> finish_row(const Normalizer& normalizer, int64_t keys, T sum, T square) {
  switch (normalizer.kind) {
    case Normalizer::Kind::sum: {
      const T floor = static_cast<T>(normalizer.floor), total = sum < floor ? floor : sum;  // NaN stays
      if (total > 0) return {1 / total, std::log(total)};
      return {1, -std::numeric_limits<T>::infinity()};
    }
    case Normalizer::Kind::relu:
    case Normalizer::Kind::identity:
      return {divisor_rate(normalizer, keys, sum), 0};
    case Normalizer::Kind::z_score: {
      const T n = std::max(T(1), sum);
      return {z_score_rate(normalizer, square / n, n), 0};
    }
    default:
      return {1, 0};
  }
}

}  // namespace regard::kernels
