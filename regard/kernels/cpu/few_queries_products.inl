// The products: scores, sums of values, gradients of keys. Part of few_queries.inl.

/// Registers a product may keep sums in: half of them, so that operands and pointers have the others.
constexpr int kSums = REGARD_VECTOR_BYTES == 64 ? 16 : 8;
/// Keys that pass while sums stay in registers: moving the sums is then 1/16 of the work.
constexpr int64_t kPassing = 16;

/// Where row `j + ahead.rows` lies, in the array itself or in the one read next; null for nothing to fetch.
template <class S>
struct Fetch {
  const S *here, *next;
  int64_t stride, next_stride, count, rows;

  Fetch(const FewArray& array, const FewAhead& ahead, int64_t array_count)
      : here(static_cast<const S*>(array.data)),
        next(static_cast<const S*>(ahead.next.data)),
        stride(array.stride),
        next_stride(ahead.next.stride),
        count(array_count),
        rows(ahead.rows) {}

  const S* at(int64_t j) const {
    const int64_t row = j + rows;
    if (rows == 0) return nullptr;
    if (row < count) return here + row * stride;
    return next == nullptr ? nullptr : next + (row - count) * next_stride;
  }
  int64_t step(int64_t j) const { return j + rows < count ? stride : next_stride; }
};

/// R rows times K keys from key j on: R K accumulators, one a lane.
template <class T, class S, int R, int K>
inline void score_group(const FewScores<T>& x, const Fetch<S>& fetch, int64_t first_row, int64_t j) {
  constexpr int W = kWidth<T>;
  static_assert(R * K == W);
  const T* rows = x.rows + first_row * x.row_stride;
  const int64_t left = x.count - j;
  const S *key[K], *ahead[K];
  const S* ahead_first = first_row == 0 ? fetch.at(j) : nullptr;
  const int64_t ahead_step = fetch.step(j);
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k) {
    key[k] = static_cast<const S*>(x.keys.data) + (j + (k < left ? k : left - 1)) * x.keys.stride;
    ahead[k] = ahead_first + k * ahead_step;
  }
  Vector<T> sum[W] = {};
  int64_t c = 0;
  for (; c + W <= x.width; c += W) {
    Vector<T> keys[K];
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) keys[k] = load<T>(key[k] + c);
    if (ahead_first != nullptr) {
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) __builtin_prefetch(ahead[k] + c);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vector<T> q = load<T>(rows + r * x.row_stride + c);
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) sum[r * K + k] += q * keys[k];
    }
  }
  if (c < x.width) {
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      const Vector<T> part = load_part<T>(key[k] + c, x.width - c);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r * K + k] += load<T>(rows + r * x.row_stride + c) * part;
    }
  }
  T total[W];
  store_bits(total, sum_each<T>(sum));
  T* out = x.scores + first_row * kLanes + j;
  if (left >= K) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) __builtin_memcpy(out + r * kLanes, total + r * K, K * sizeof(T));
  } else {
    for (int r = 0; r < R; ++r) {
      for (int64_t k = 0; k < left; ++k) out[r * kLanes + k] = total[r * K + k];
    }
  }
}

/// One row times the `left` keys from key j on, at most a vector's lanes of them. Few keys at a time and a longer
/// stretch of each: with one row reading is all there is, and the hardware follows four streams better than sixteen.
template <class T, class S>
inline void score_one_row(const FewScores<T>& x, const Fetch<S>& fetch, int64_t row, int64_t j) {
  constexpr int W = kWidth<T>, K = W < 4 ? W : 4, U = 4;  // keys at a time, vectors of each
  const T* q = x.rows + row * x.row_stride;
  const int64_t left = x.count - j < W ? x.count - j : W;
  Vector<T> total[W] = {};
#pragma GCC unroll 4
  for (int first = 0; first < W; first += K) {
    if (first >= left) break;
    const S *key[K], *ahead = row == 0 ? fetch.at(j + first) : nullptr;
    const int64_t ahead_step = fetch.step(j + first);
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const int64_t n = first + k < left ? first + k : left - 1;
      key[k] = static_cast<const S*>(x.keys.data) + (j + n) * x.keys.stride;
    }
    Vector<T> sum[K * U] = {};
    int64_t c = 0;
    for (; c + U * W <= x.width; c += U * W) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          sum[k * U + u] += load<T>(q + c + u * W) * load<T>(key[k] + c + u * W);
          if (ahead != nullptr) __builtin_prefetch(ahead + k * ahead_step + c + u * W);
        }
      }
    }
    for (; c < x.width; c += W) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        sum[k * U] += load<T>(q + c) * (c + W <= x.width ? load<T>(key[k] + c) : load_part<T>(key[k] + c, x.width - c));
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      total[first + k] = (sum[k * U] + sum[k * U + 1]) + (sum[k * U + 2] + sum[k * U + 3]);
    }
  }
  const Vector<T> all = sum_each<T>(total);
  __builtin_memcpy(x.scores + row * kLanes + j, &all, static_cast<unsigned long>(left) * sizeof(T));
}

template <class T, class S, int R>
inline int64_t score_rows(const FewScores<T>& x, const Fetch<S>& fetch, int64_t first) {
  if constexpr (R <= kWidth<T>) {
    for (; first + R <= x.row_count; first += R) {
      for (int64_t j = 0; j < x.count; j += kWidth<T> / R) {
        score_group<T, S, R, kWidth<T> / R>(x, fetch, first, j);
      }
    }
  }
  return first;
}

template <class T, class S>
void scores(const FewScores<T>& x) {
  const Fetch<S> fetch(x.keys, x.ahead, x.count);
  int64_t first = score_rows<T, S, 8>(x, fetch, 0);
  first = score_rows<T, S, 4>(x, fetch, first);
  first = score_rows<T, S, 2>(x, fetch, first);
  for (; first < x.row_count; ++first) {
    for (int64_t j = 0; j < x.count; j += kWidth<T>) score_one_row<T, S>(x, fetch, first, j);
  }
}

/// R rows times V vectors of the width from column c on, over the keys [j, end).
template <class T, class S, int R, int V, bool part>
inline void sum_slab(const FewSums<T>& x, const Fetch<S>& fetch, int64_t first_row, int64_t j, int64_t end, int64_t c) {
  constexpr int W = kWidth<T>;
  T* sums = x.sums + first_row * x.sum_stride + c;
  const T* weights = x.weights + first_row * kLanes;
  const S* value = static_cast<const S*>(x.values.data) + j * x.values.stride + c;
  Vector<T> sum[R * V];
#pragma GCC unroll 16
  for (int n = 0; n < R * V; ++n) sum[n] = load<T>(sums + n / V * x.sum_stride + n % V * W);
  for (; j < end; ++j, value += x.values.stride) {
    Vector<T> values[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) values[v] = part ? load_part<T>(value, x.width - c) : load<T>(value + v * W);
    const S* ahead = first_row == 0 ? fetch.at(j) : nullptr;
    if (ahead != nullptr) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) __builtin_prefetch(ahead + c + v * W);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T weight = weights[r * kLanes + j];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r * V + v] += weight * values[v];
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < R * V; ++n) store_bits(sums + n / V * x.sum_stride + n % V * W, sum[n]);
}

template <class T, class S, int R>
inline int64_t sum_rows(const FewSums<T>& x, const Fetch<S>& fetch, int64_t first) {
  constexpr int W = kWidth<T>, V = kSums / R < 8 ? kSums / R : 8;
  for (; first + R <= x.row_count; first += R) {
    for (int64_t j = 0; j < x.count; j += kPassing) {
      const int64_t end = j + kPassing < x.count ? j + kPassing : x.count;
      int64_t c = 0;
      for (; c + V * W <= x.width; c += V * W) sum_slab<T, S, R, V, false>(x, fetch, first, j, end, c);
      for (; c + W <= x.width; c += W) sum_slab<T, S, R, 1, false>(x, fetch, first, j, end, c);
      if (c < x.width) sum_slab<T, S, R, 1, true>(x, fetch, first, j, end, c);
    }
  }
  return first;
}

template <class T, class S>
void sums(const FewSums<T>& x) {
  const Fetch<S> fetch(x.values, x.ahead, x.count);
  int64_t first = sum_rows<T, S, 8>(x, fetch, 0);
  first = sum_rows<T, S, 4>(x, fetch, first);
  first = sum_rows<T, S, 2>(x, fetch, first);
  sum_rows<T, S, 1>(x, fetch, first);
}

/// K keys from key j on times V vectors from column c on.
template <class T, int K, int V, bool part>
inline void outer_slab(const FewOuter<T>& x, int64_t j, int64_t c) {
  constexpr int W = kWidth<T>;
  T* gradient = x.gradient + j * x.gradient_stride + c;
  const T* rows = x.rows + c;
  Vector<T> sum[K * V] = {};
  if (x.add) {
#pragma GCC unroll 16
    for (int n = 0; n < K * V; ++n) {
      const T* from = gradient + n / V * x.gradient_stride + n % V * W;
      sum[n] = part ? load_part<T>(from, x.width - c) : load<T>(from);
    }
  }
  for (int64_t r = 0; r < x.row_count; ++r, rows += x.row_stride) {
    Vector<T> row[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) row[v] = load<T>(rows + v * W);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      const T weight = x.weights[r * kLanes + j + k];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[k * V + v] += weight * row[v];
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < K * V; ++n) {
    T* to = gradient + n / V * x.gradient_stride + n % V * W;
    if constexpr (part) {
      store_part<T>(to, sum[n], x.width - c);
    } else {
      store_bits(to, sum[n]);
    }
  }
}

template <class T, int K>
inline int64_t outer_keys(const FewOuter<T>& x, int64_t j) {
  constexpr int W = kWidth<T>, V = kSums / 4;  // four keys share the loads of the rows
  for (; j + K <= x.count; j += K) {
    int64_t c = 0;
    for (; c + V * W <= x.width; c += V * W) outer_slab<T, K, V, false>(x, j, c);
    for (; c + W <= x.width; c += W) outer_slab<T, K, 1, false>(x, j, c);
    if (c < x.width) outer_slab<T, K, 1, true>(x, j, c);
  }
  return j;
}

template <class T>
void outer(const FewOuter<T>& x) {
  outer_keys<T, 1>(x, outer_keys<T, 4>(x, 0));
}

/// Whether no element is infinite or NaN.
template <class T, class S>
bool finite(const FewArray& x, int64_t count, int64_t width) {
  constexpr int W = kWidth<T>;
  Vector<T> zero{};
  for (int64_t j = 0; j < count; ++j) {
    const S* row = static_cast<const S*>(x.data) + j * x.stride;
    int64_t c = 0;
    for (; c + W <= width; c += W) zero += load<T>(row + c) * T(0);
    if (c < width) zero += load_part<T>(row + c, width - c) * T(0);
  }
  return sum_lanes<T>(zero) == 0;
}
