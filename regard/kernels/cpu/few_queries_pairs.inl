// Passes over the pairs of a block, row by row: softmax and chain rule. Part of few_queries.inl.

/// Masks of one vector of pairs.
template <class T>
struct Marks {
  Integers<T> keep, counted;
};

/// Pairs [at, at + lanes) of a row; those from `count` on are neither kept nor counted.
template <class T>
inline Marks<T> marks_of(const FewRow<T>& row, int64_t at, int64_t count) {
  const Integers<T> exists = lane_numbers<T>() < static_cast<typename Types<T>::Integer>(count - at);
  const Integers<T> keep = row.keep == nullptr ? exists : exists & load_marks<T>(row.keep + at);
  return {keep, row.counted == nullptr ? keep : exists & load_marks<T>(row.counted + at)};
}

template <class T>
void absorb(const FewAbsorb<T>& a) {
  constexpr T nothing = -static_cast<T>(__builtin_inf());
  constexpr int W = kWidth<T>;
  Vector<T> largest = spread<T>(nothing);
  for (int64_t at = 0; at < a.count; at += W) {
    const Marks<T> m = marks_of(a.row, at, a.count);
    const Vector<T> s = load<T>(a.row.score + at);
    largest = ((m.keep | m.counted) & (s > largest)) != 0 ? s : largest;
  }
  T maximum = *a.maximum;
  for (int i = 0; i < W; ++i) maximum = largest[i] > maximum ? largest[i] : maximum;
  const T base = maximum == nothing ? T(0) : maximum;  // no -inf minus -inf
  Vector<T> sum{};
  for (int64_t at = 0; at < kLanes; at += W) {
    if (at >= a.count) {
      store_bits(a.p + at, Vector<T>{});
      continue;
    }
    const Marks<T> m = marks_of(a.row, at, a.count);
    Vector<T> p = exp2_of<T>((load<T>(a.row.score + at) - base) * a.unit);
    sum += m.counted != 0 ? p : Vector<T>{};
    if (a.row.weight != nullptr) p *= load<T>(a.row.weight + at);
    store_bits(a.p + at, m.keep != 0 ? p : Vector<T>{});
  }
  const T old = *a.maximum;
  if (old != maximum && old != nothing) {
    const T factor = exp2_of<T>(spread<T>((old - base) * a.unit))[0];
    *a.sum *= factor;
    for (int64_t d = 0; d < a.width; d += W) store_bits(a.output + d, load<T>(a.output + d) * factor);
  }
  *a.maximum = maximum;
  *a.sum += sum_lanes<T>(sum);
}

template <class T>
void chain(const FewChain<T>& c) {
  for (int64_t at = 0; at < kLanes; at += kWidth<T>) {
    if (at >= c.count) {
      store_bits(c.pw + at, Vector<T>{});
      store_bits(c.ds + at, Vector<T>{});
      if (c.dw != nullptr) store_bits(c.dw + at, Vector<T>{});
      continue;
    }
    const Marks<T> m = marks_of(c.row, at, c.count);
    const Vector<T> p = exp2_of<T>((load<T>(c.row.score + at) - c.lse) * c.unit), dp = load<T>(c.dp + at);
    const Vector<T> pw = c.row.weight == nullptr ? p : p * load<T>(c.row.weight + at);
    const Vector<T> gain = m.keep != 0 ? pw * dp : Vector<T>{};
    const Vector<T> loss = m.counted != 0 ? p * c.delta : Vector<T>{};
    store_bits(c.pw + at, m.keep != 0 ? pw : Vector<T>{});
    store_bits(c.ds + at, (gain - loss) * c.slope);
    if (c.dw != nullptr) store_bits(c.dw + at, m.keep != 0 ? p * dp : Vector<T>{});
  }
}

template <class T>
void combine(const FewCombine<T>& c) {
  for (int64_t at = 0; at < kLanes; at += kWidth<T>) {
    Vector<T> sum{};
    if (at < c.count) {
      const Marks<T> m = marks_of(c.row, at, c.count);
      if (c.f != nullptr) sum += load<T>(c.ds + at) * load<T>(c.f + at);
      if (c.g != nullptr) sum += load<T>(c.dw + at) * load<T>(c.g + at);
      sum = (m.keep | m.counted) != 0 ? sum : Vector<T>{};
    }
    store_bits(c.out + at, sum);
  }
}
