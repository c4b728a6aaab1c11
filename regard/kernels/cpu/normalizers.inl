// The normalizers beside softmax, on the same loops: how a block of scores is absorbed into the state of its lanes, and
// the chain rule from what the backward pass recomputes. Part of primitives.inl.
//
//                       weight of a score s  divided by         what the backward reads of a lane
//     signed softmax    sign(s) exp(|s|)     sum of exp(|s|)    lse, delta
//     sum               max(s, 0)            max(sum, floor)    rate = 1 / divisor, delta (times rate; 0 at the floor)
//     sigmoid           sigmoid(s)           1
//     relu              max(s, 0)            1, N, kept keys    rate = 1 / divisor
//     identity          s                    1, N, kept keys    rate = 1 / divisor
//     z_score           s - mean             deviation          lse = mean, rate, delta = mean of dP, slope (of
//                                                               s - mean in d score)
//
// Signs, rectifiers and floors are constants for derivatives, as everywhere.

/// s <= 0 ? 0 : s, so that NaN stays.
template <class T>
inline Vector<T> positive_part(Vector<T> s) {
  return s <= 0 ? Vector<T>{} : s;
}
template <class T>
inline Vector<T> magnitude(Vector<T> s) {
  return s < 0 ? -s : s;
}
/// sign(s) p
template <class T>
inline Vector<T> signed_by(Vector<T> s, Vector<T> p) {
  return s < 0 ? -p : s > 0 ? p : p * T(0);
}

template <class T>
struct RowTermsOfLane {
  Vector<T> lse, delta, rate, slope;
};

/// The weight of a pair, its derivative by the score where the row's sums stay, and what the sums take off it.
template <class T>
struct WeightSlope {
  Vector<T> p, own, shared;
};

template <class T>
struct SignedSoftmax {
  static constexpr bool kCentered = false;  // whether slopes are measured from delta before they are multiplied by own
  static WeightSlope<T> chain(Vector<T> s, const RowTermsOfLane<T>& row, T unit) {
    const Vector<T> e = weight_exp2<T>((magnitude<T>(s) - row.lse) * unit);
    const Vector<T> p = signed_by<T>(s, e);
    return {p, signed_by<T>(s, p), p * row.delta};
  }
};

template <class T>
struct Sum {
  static constexpr bool kCentered = false;
  static constexpr bool kCounts = false;  // sums weights over counted pairs, not ones over kept pairs
  static Vector<T> weight(Vector<T> s, T) { return positive_part<T>(s); }
  static WeightSlope<T> chain(Vector<T> s, const RowTermsOfLane<T>& row, T) {
    return {positive_part<T>(s) * row.rate, s > 0 ? row.rate : Vector<T>{}, s > 0 ? row.delta : Vector<T>{}};
  }
};

template <class T>
struct Sigmoid {
  static constexpr bool kCentered = false;
  static constexpr bool kCounts = true;
  static Vector<T> weight(Vector<T> s, T unit) {
    const Vector<T> e = weight_exp2<T>(-magnitude<T>(s) * unit), inverse = 1 / (1 + e);
    return s < 0 ? e * inverse : inverse;
  }
  static WeightSlope<T> chain(Vector<T> s, const RowTermsOfLane<T>&, T unit) {
    const Vector<T> e = weight_exp2<T>(-magnitude<T>(s) * unit), inverse = 1 / (1 + e);
    return {s < 0 ? e * inverse : inverse, e * inverse * inverse, Vector<T>{}};
  }
};

template <class T>
struct Relu {
  static constexpr bool kCentered = false;
  static constexpr bool kCounts = true;
  static Vector<T> weight(Vector<T> s, T) { return positive_part<T>(s); }
  static WeightSlope<T> chain(Vector<T> s, const RowTermsOfLane<T>& row, T) {
    return {positive_part<T>(s) * row.rate, s > 0 ? row.rate : Vector<T>{}, Vector<T>{}};
  }
};

template <class T>
struct Identity {
  static constexpr bool kCentered = false;
  static constexpr bool kCounts = true;
  static Vector<T> weight(Vector<T> s, T) { return s; }
  static WeightSlope<T> chain(Vector<T> s, const RowTermsOfLane<T>& row, T) {
    return {s * row.rate, row.rate, Vector<T>{}};
  }
};

/// rate (dP - mean of dP) is exactly 0 in a row of one key, whose rate is the largest there is.
template <class T>
struct ZScore {
  static constexpr bool kCentered = true;
  static WeightSlope<T> chain(Vector<T> s, const RowTermsOfLane<T>& row, T) {
    const Vector<T> centered = s - row.lse;
    return {centered * row.rate, row.rate, row.slope * centered};
  }
};

/// value where the mask is not 0; no mask: everywhere.
template <class T>
inline Vector<T> only(const int32_t* mask, int64_t pair, Vector<T> value) {
  return mask == nullptr ? value : where<T>(mask + pair, value, Vector<T>{});
}

/// Weights of their own score alone; the state is a sum (Sum: of the weights; else of the kept pairs).
template <class N, class T, bool Plain>
void absorb_sums_lanes(const Absorb<T>& a, int64_t l) {
  Vector<T> sum{}, odd{};
  for (int64_t s = 0; s < a.steps; ++s) {
    const int64_t pair = s * kLanes + l;
    Vector<T> w = N::weight(at(a.tile + pair), a.unit);
    Vector<T>& total = s % 2 == 0 ? sum : odd;  // two chains of additions
    const Vector<T> term = N::kCounts ? Vector<T>{} + 1 : w;
    if constexpr (Plain) {
      total += term;
    } else {
      total += only<T>(N::kCounts ? a.keep : a.counted, pair, term);
      if (a.weight != nullptr) w *= at(a.weight + pair);
      w = only<T>(a.keep, pair, w);
    }
    at(a.tile + pair) = w;
  }
  at(a.state->sum + l) += sum + odd;
}

template <class T>
bool plain(const Absorb<T>& a) {
  return a.weight == nullptr && a.counted == nullptr && a.keep == nullptr;
}

template <class N, class T>
void absorb_sums(const Absorb<T>& a) {
  for (int64_t l = 0; l < a.lanes; l += kWidth<T>) {
    plain(a) ? absorb_sums_lanes<N, T, true>(a, l) : absorb_sums_lanes<N, T, false>(a, l);
  }
}

/// Softmax of the magnitudes, weights with the signs. A hidden score of -inf has an infinite magnitude: masks say what
/// is hidden.
template <class T>
void absorb_signed(const Absorb<T>& a) {
  RowState<T>& state = *a.state;
  const Vector<T> nothing = Vector<T>{} - Format<T>::infinity;
  for (int64_t l = 0; l < a.lanes; l += kWidth<T>) {
    Vector<T> largest = nothing;
    for (int64_t s = 0; s < a.steps; ++s) {
      const int64_t pair = s * kLanes + l;
      Vector<T> m = magnitude<T>(at(a.tile + pair));
      if (a.keep != nullptr) {
        const Vector<T> uncounted = a.counted != nullptr ? where<T>(a.counted + pair, m, nothing) : nothing;
        m = where<T>(a.keep + pair, m, uncounted);
      }
      largest = m > largest ? m : largest;
    }
    at(state.block_maximum + l) = largest;
    const Vector<T> base = raise_maximum(state, a.unit, l);
    Vector<T> sum{};
    for (int64_t s = 0; s < a.steps; ++s) {
      const int64_t pair = s * kLanes + l;
      const Vector<T> score = at(a.tile + pair);
      const Vector<T> e = weight_exp2<T>((magnitude<T>(score) - base) * a.unit);
      sum += only<T>(a.counted != nullptr ? a.counted : a.keep, pair, e);
      Vector<T> p = signed_by<T>(score, e);
      if (a.weight != nullptr) p *= at(a.weight + pair);
      at(a.tile + pair) = only<T>(a.keep, pair, p);
    }
    at(state.sum + l) = at(state.sum + l) * at(state.factor + l) + sum;
  }
}

/// Mean and squares of the block, merged into those of the lanes by Chan's rule; then s - mean.
template <class T>
void absorb_z_score(const Absorb<T>& a) {
  RowState<T>& state = *a.state;
  const int32_t* const counted = a.counted != nullptr ? a.counted : a.keep;
  const Vector<T> one = Vector<T>{} + 1;
  for (int64_t l = 0; l < a.lanes; l += kWidth<T>) {
    Vector<T> count{}, total{};
    for (int64_t s = 0; s < a.steps; ++s) {
      const int64_t pair = s * kLanes + l;
      count += only<T>(counted, pair, one);
      total += only<T>(counted, pair, at(a.tile + pair));
    }
    const Vector<T> before = at(state.sum + l), old_mean = at(state.maximum + l), now = before + count;
    const Vector<T> block_mean = total / (count < 1 ? one : count), share = count / (now < 1 ? one : now);
    const Vector<T> apart = count < 1 ? Vector<T>{} : block_mean - old_mean, mean = old_mean + apart * share;
    Vector<T> square = apart * apart * before * share, rest{};
    for (int64_t s = 0; s < a.steps; ++s) {
      const int64_t pair = s * kLanes + l;
      const Vector<T> score = at(a.tile + pair), centered = score - block_mean;
      square += only<T>(counted, pair, centered * centered);
      rest += only<T>(counted, pair, centered);
      const Vector<T> kept = only<T>(a.keep, pair, a.weight != nullptr ? at(a.weight + pair) : one);
      at(a.kept + pair) = kept;
      at(a.tile + pair) = only<T>(a.keep, pair, (score - mean) * kept);
    }
    at(state.sum + l) = now;
    at(state.maximum + l) = mean;
    at(state.factor + l) = old_mean - mean;
    at(state.square + l) += square;
    // Of both means, as they are weighed, and of their sum.
    at(state.residual + l) = at(state.residual + l) * (1 - share) + rest / (now < 1 ? one : now) +
                             ((old_mean - mean) + apart * share);
  }
}

template <class T>
void add_scaled(T* sums, const T* values, const T* factor, int64_t rows, int64_t lanes) {
  for (int64_t l = 0; l < lanes; l += kWidth<T>) {
    const Vector<T> f = at(factor + l);
    for (int64_t r = 0; r < rows; ++r) at(sums + r * kLanes + l) += f * at(values + r * kLanes + l);
  }
}

template <class T>
void add_kept(T* sums, const T* kept, const T* slope, int64_t steps, int64_t lanes) {
  for (int64_t l = 0; l < lanes; l += kWidth<T>) {
    Vector<T> sum{};
    for (int64_t s = 0; s < steps; ++s) {
      const Vector<T> factor = at(kept + s * kLanes + l), term = factor * at(slope + s * kLanes + l);
      sum += factor != 0 ? term : Vector<T>{};
    }
    at(sums + l) += sum;
  }
}

template <class N, class T, bool Plain>
void chain_by_lanes(const Chain<T>& c, int64_t l) {
  const auto load = [&](const T* terms) { return terms == nullptr ? Vector<T>{} : at(terms + l); };
  const RowTermsOfLane<T> row{load(c.lse), load(c.delta), load(c.rate), load(c.slope)};
  for (int64_t s = 0; s < c.steps; ++s) {
    const int64_t pair = s * kLanes + l;
    const Vector<T> dp = at(c.dp + pair);
    const WeightSlope<T> w = N::chain(at(c.score.data + s * c.score.step + l), row, c.unit);
    Vector<T> pw = w.p, ds = N::kCentered ? dp : w.own * dp, dw = w.p * dp, shared = w.shared, level = row.delta;
    if constexpr (!Plain) {
      // A hidden pair's score, dp or weight may be NaN.
      const int32_t* keep = c.keep ? c.keep.data + s * c.keep.step + l : nullptr;
      const int32_t* counted = c.counted ? c.counted.data + s * c.counted.step + l : keep;
      if (c.weight) {
        const Vector<T> weight = at(c.weight.data + s * c.weight.step + l);
        pw *= weight;
        ds *= weight;
      }
      pw = only<T>(keep, 0, pw);
      ds = only<T>(keep, 0, ds);
      dw = only<T>(keep, 0, dw);
      shared = only<T>(counted, 0, shared);
      level = only<T>(counted, 0, level);
    }
    if constexpr (N::kCentered) ds = w.own * (ds - level);
    at(c.pw + pair) = pw;
    at(c.ds + pair) = ds - shared;
    if (c.dw != nullptr) at(c.dw + pair) = dw;
  }
}

template <class N, class T>
void chain_by(const Chain<T>& c) {
  const bool plain = !c.keep && !c.counted && !c.weight;
  for (int64_t l = 0; l < c.lanes; l += kWidth<T>) {
    plain ? chain_by_lanes<N, T, true>(c, l) : chain_by_lanes<N, T, false>(c, l);
  }
}
