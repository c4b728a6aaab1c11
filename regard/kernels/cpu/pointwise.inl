// Passes over the pairs of a tile beside the products: masking, softmax, chain rule. Part of primitives.inl.

template <class T>
inline Vector<T>& at(T* p) {
  return *reinterpret_cast<Vector<T>*>(p);
}
template <class T>
inline Vector<T> at(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

/// value where the mask is not 0, `other` elsewhere, over one vector.
template <class T>
inline Vector<T> where(const int32_t* mask, Vector<T> value, Vector<T> other) {
  if constexpr (sizeof(T) == sizeof(int32_t)) {
    return *reinterpret_cast<const Vector<int32_t>*>(mask) != 0 ? value : other;
  } else {
    VectorIndex<T> chosen;
#pragma GCC unroll 16
    for (int i = 0; i < kWidth<T>; ++i) chosen[i] = mask[i];
    return chosen != 0 ? value : other;
  }
}

template <class T>
void mask_scores(T* tile, View<T> score, View<int32_t> live, int64_t steps, int64_t lanes, T* maximum) {
  const Vector<T> nothing = Vector<T>{} - Format<T>::infinity;
  for (int64_t l = 0; l < lanes; l += kWidth<T>) {
    Vector<T> largest = at(maximum + l);
    for (int64_t s = 0; s < steps; ++s) {
      Vector<T> value = at(score.data + s * score.step + l);
      if (live) value = where<T>(live.data + s * live.step + l, value, nothing);
      at(tile + s * kLanes + l) = value;
      largest = value > largest ? value : largest;
    }
    at(maximum + l) = largest;
  }
}

inline void band(int32_t* mask, const int32_t* low, const int32_t* high, int32_t first, int64_t steps, int64_t lanes) {
  for (int64_t l = 0; l < lanes; l += kWidth<int32_t>) {
    const Vector<int32_t> from = at(low + l), to = at(high + l);
    for (int64_t s = 0; s < steps; ++s) {
      const Vector<int32_t> key = Vector<int32_t>{} + (first + static_cast<int32_t>(s));
      at(mask + s * kLanes + l) = (key >= from) & (key <= to);
    }
  }
}

/// maximum = max(maximum, block maximum), factor = exp2(unit (old - new)). What scores are measured from is returned:
/// the maximum, or 0 while it is -inf (no -inf minus -inf).
template <class T>
inline Vector<T> raise_maximum(RowState<T>& state, T unit, int64_t l) {
  const Vector<T> old = at(state.maximum + l), block = at(state.block_maximum + l);
  const Vector<T> now = block > old ? block : old;
  const Vector<T> base = now == -Format<T>::infinity ? Vector<T>{} : now;
  at(state.maximum + l) = now;
  at(state.factor + l) = weight_exp2<T>((old - base) * unit);
  return base;
}

/// `Plain`: no weights, and a hidden pair's score of -inf says all.
template <class T, bool Plain>
void absorb_lanes(const Absorb<T>& a, int64_t l) {
  RowState<T>& state = *a.state;
  const Vector<T> base = raise_maximum(state, a.unit, l);
  Vector<T> sum{}, odd{};
  for (int64_t s = 0; s < a.steps; ++s) {
    T* tile = a.tile + s * kLanes + l;
    Vector<T> p = weight_exp2<T>((at(tile) - base) * a.unit);
    Vector<T>& total = s % 2 == 0 ? sum : odd;  // two chains of additions
    if constexpr (!Plain) {
      const int64_t pair = s * kLanes + l;
      total += a.counted != nullptr ? where<T>(a.counted + pair, p, Vector<T>{}) : p;
      if (a.weight != nullptr) p *= at(a.weight + pair);
      if (a.keep != nullptr) p = where<T>(a.keep + pair, p, Vector<T>{});
    } else {
      total += p;
    }
    at(tile) = p;
  }
  at(state.sum + l) = at(state.sum + l) * at(state.factor + l) + (sum + odd);
}

template <class T>
void absorb(const Absorb<T>& a) {
  const bool plain = a.weight == nullptr && a.counted == nullptr && a.keep == nullptr;
  for (int64_t l = 0; l < a.lanes; l += kWidth<T>) {
    plain ? absorb_lanes<T, true>(a, l) : absorb_lanes<T, false>(a, l);
  }
}

template <class T, bool Masked, bool Weighted>
void chain_lanes(const Chain<T>& c, int64_t l) {
  const Vector<T> lse = at(c.lse + l), delta = at(c.delta + l), zero{};
  for (int64_t s = 0; s < c.steps; ++s) {
    const int64_t pair = s * kLanes + l;
    const Vector<T> dp = at(c.dp + pair);
    const Vector<T> p = weight_exp2<T>((at(c.score.data + s * c.score.step + l) - lse) * c.unit);
    const int32_t* keep = Masked ? c.keep.data + s * c.keep.step + l : nullptr;
    const Vector<T> kept = Masked ? where<T>(keep, p, zero) : p;
    // A hidden pair's dp or weight may be NaN.
    const Vector<T> dw = Masked ? where<T>(keep, p * dp, zero) : p * dp;
    Vector<T> pw = kept, ds = dw;
    if constexpr (Weighted) {
      const Vector<T> weight = at(c.weight.data + s * c.weight.step + l);
      pw = Masked ? where<T>(keep, kept * weight, zero) : kept * weight;
      ds = Masked ? where<T>(keep, dw * weight, zero) : dw * weight;
    }
    const Vector<T> counted = Masked && c.counted ? where<T>(c.counted.data + s * c.counted.step + l, p, zero) : kept;
    at(c.pw + pair) = pw;
    at(c.ds + pair) = ds - counted * delta;
    if (c.dw != nullptr) at(c.dw + pair) = dw;
  }
}

template <class T>
void chain(const Chain<T>& c) {
  for (int64_t l = 0; l < c.lanes; l += kWidth<T>) {
    if (c.keep) {
      c.weight ? chain_lanes<T, true, true>(c, l) : chain_lanes<T, true, false>(c, l);
    } else {
      c.weight ? chain_lanes<T, false, true>(c, l) : chain_lanes<T, false, false>(c, l);
    }
  }
}

template <class T>
void combine(const Combine<T>& c) {
  for (int64_t s = 0; s < c.steps; ++s) {
    T* out = c.out + s * kLanes;
    for (int64_t l = 0; l < c.lanes; ++l) out[l] = 0;
    if (c.f) {
      const T *f = c.f.data + s * c.f.step, *ds = c.ds + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < c.lanes; ++l) out[l] = ds[l] * f[l];
    }
    if (c.g) {
      const T *g = c.g.data + s * c.g.step, *dw = c.dw + s * kLanes;
#pragma GCC ivdep
      for (int64_t l = 0; l < c.lanes; ++l) out[l] += dw[l] * g[l];
    }
    if (c.live) {
      const int32_t* live = c.live.data + s * c.live.step;
#pragma GCC ivdep
      for (int64_t l = 0; l < c.lanes; ++l) out[l] = live[l] != 0 ? out[l] : T(0);
    }
  }
}

template <class T>
T row_sum(const T* a, int64_t a_column, const T* b, int64_t b_column, int64_t width) {
  // The same order of sums for every layout.
  const auto load = [&](const T* from, int64_t column, int64_t d) {
    const int64_t count = width - d < kWidth<T> ? width - d : kWidth<T>;
    return column == 1 && count == kWidth<T> ? at(from + d) : load_some(from + d * column, column, count);
  };
  Vector<T> sums{};
  for (int64_t d = 0; d < width; d += kWidth<T>) {
    const Vector<T> x = load(b, b_column, d), product = load(a, a_column, d) * x;
    sums += x != 0 ? product : Vector<T>{};
  }
  T sum = 0;
  for (int i = 0; i < kWidth<T>; ++i) sum += sums[i];
  return sum;
}
