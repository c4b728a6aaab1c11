// Between rows of an array and the lanes of a packed tile: squares of kWidth x kWidth are turned in registers, in log2
// steps that exchange the halves of every pair of vectors. Part of primitives.inl.

/// One step: vectors i and i + Distance exchange what lies across the diagonal.
template <class T, int Distance>
inline void exchange(Vector<T> (&rows)[kWidth<T>]) {
  if constexpr (Distance < kWidth<T>) {
    VectorIndex<T> low{}, high{};
#pragma GCC unroll 16
    for (int j = 0; j < kWidth<T>; ++j) {
      low[j] = (j & Distance) == 0 ? j : kWidth<T> + j - Distance;
      high[j] = (j & Distance) == 0 ? j + Distance : kWidth<T> + j;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth<T>; ++i) {
      if ((i & Distance) != 0) continue;
      const Vector<T> a = rows[i], b = rows[i + Distance];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + Distance] = __builtin_shuffle(a, b, high);
    }
    exchange<T, 2 * Distance>(rows);
  }
}

/// A vector of `count` elements, zero behind them.
template <class T>
inline Vector<T> load_some(const T* from, int64_t column, int64_t count) {
  alignas(64) T all[kWidth<T>] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = from[i * column];
  return *reinterpret_cast<const Vector<T>*>(all);
}

template <class T>
void pack(const Transpose<T>& t) {
  constexpr int64_t W = kWidth<T>;
  for (int64_t first = 0; first < t.count; first += W) {
    for (int64_t d = 0; d < t.width; d += W) {
      const int64_t columns = t.width - d < W ? t.width - d : W;
      Vector<T> rows[W];
#pragma GCC unroll 16
      for (int64_t r = 0; r < W; ++r) {
        const T* from = t.array + (first + r) * t.row + d * t.column;
        const bool whole = t.column == 1 && columns == W;
        rows[r] = first + r >= t.count ? Vector<T>{}
                  : whole              ? *reinterpret_cast<const Vector<T>*>(from)
                                       : load_some(from, t.column, columns);
      }
      exchange<T, 1>(rows);
      T* to = t.packed + d * kLanes + first;
#pragma GCC unroll 16
      for (int64_t r = 0; r < W; ++r) {
        if (r < columns) *reinterpret_cast<Vector<T>*>(to + r * kLanes) = rows[r] * t.scale;
      }
    }
  }
  // The lanes up to the next unit, where a vector is narrower than that.
  const int64_t end = (t.count + kLaneUnit - 1) / kLaneUnit * kLaneUnit;
  for (int64_t first = (t.count + W - 1) / W * W; first < end; first += W) {
    for (int64_t d = 0; d < t.width; ++d) *reinterpret_cast<Vector<T>*>(t.packed + d * kLanes + first) = Vector<T>{};
  }
}

template <class T>
inline void write_some(T* to, int64_t column, int64_t count, Vector<T> value, bool add) {
  for (int64_t i = 0; i < count; ++i) to[i * column] = add ? to[i * column] + value[i] : value[i];
}

template <class T>
void unpack(const Transpose<T>& t) {
  constexpr int64_t W = kWidth<T>;
  for (int64_t first = 0; first < t.count; first += W) {
    const Vector<T> factor =
        t.factor != nullptr ? *reinterpret_cast<const Vector<T>*>(t.factor + first) : Vector<T>{} + T(1);
    for (int64_t d = 0; d < t.width; d += W) {
      const int64_t columns = t.width - d < W ? t.width - d : W;
      Vector<T> rows[W];
#pragma GCC unroll 16
      for (int64_t r = 0; r < W; ++r) {
        const T* from = t.packed + (d + r) * kLanes + first;
        rows[r] = r < columns ? *reinterpret_cast<const Vector<T>*>(from) * factor : Vector<T>{};
      }
      exchange<T, 1>(rows);
#pragma GCC unroll 16
      for (int64_t r = 0; r < W; ++r) {
        if (first + r >= t.count) continue;
        T* to = t.array + (first + r) * t.row + d * t.column;
        if (t.column == 1 && columns == W) {
          auto* out = reinterpret_cast<Vector<T>*>(to);
          *out = t.add ? *out + rows[r] : rows[r];
        } else {
          write_some(to, t.column, columns, rows[r], t.add);
        }
      }
    }
  }
}
