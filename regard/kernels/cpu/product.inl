// Matrix products of one tile: c (rows x lanes) from a (rows x depth, strided, read element by element) and
// b (depth x lanes). Accumulators stay in registers for the whole depth; each starts at zero and is added to c once,
// so sums over many blocks lose little, and a block's sum does not depend on how rows and lanes are cut.
// Part of primitives.inl.

/// Rows of a register tile `vectors` wide: accumulators + one row of b + one broadcast fill the registers
/// (32 of AVX-512 and NEON, 16 otherwise), and at least 8 accumulators hide the latency of a fused multiply-add.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_rows(int vectors) { return vectors <= 2 ? 14 : vectors == 3 ? 8 : 6; }
constexpr int kTileVectors = 4;
#else
constexpr int tile_rows(int vectors) { return vectors == 1 ? 12 : 6; }
constexpr int kTileVectors = 2;
#endif

template <class T, int Rows, int Vectors>
inline void write_tile(const Product<T>& p, T* c, int64_t lane, const Vector<T> (&sum)[Rows][Vectors]) {
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      auto* out = reinterpret_cast<Vector<T>*>(c + r * p.c_row + v * kWidth<T>);
      if (p.mode == Product<T>::store) {
        *out = sum[r][v];
      } else if (p.mode == Product<T>::add) {
        *out = *out + sum[r][v];
      } else {
        *out = *out * *reinterpret_cast<const Vector<T>*>(p.factor + lane + v * kWidth<T>) + sum[r][v];
      }
    }
  }
  if (p.maximum == nullptr) return;
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    auto* out = reinterpret_cast<Vector<T>*>(p.maximum + lane + v * kWidth<T>);
    Vector<T> largest = *out;
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) largest = sum[r][v] > largest ? sum[r][v] : largest;
    *out = largest;
  }
}

template <class T, int Rows, int Vectors>
void tile_product(const Product<T>& p, int64_t row, int64_t lane) {
  Vector<T> sum[Rows][Vectors] = {};
  const T* a = p.a + row * p.a_row;
  const T* b = p.b + lane;
#pragma GCC unroll 4
  for (int64_t d = 0; d < p.depth; ++d, a += p.a_depth, b += p.b_row) {
    Vector<T> line[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) line[v] = *reinterpret_cast<const Vector<T>*>(b + v * kWidth<T>);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const T value = a[r * p.a_row];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] += value * line[v];
    }
  }
  write_tile<T, Rows, Vectors>(p, p.c + row * p.c_row + lane, lane, sum);
}

/// The rows left over, by a tile compiled for their number.
template <class T, int Rows, int Vectors>
void last_rows(const Product<T>& p, int64_t row, int64_t lane) {
  if constexpr (Rows > 0) {
    if (p.rows - row == Rows) return tile_product<T, Rows, Vectors>(p, row, lane);
    last_rows<T, Rows - 1, Vectors>(p, row, lane);
  }
}

template <class T, int Vectors>
void lane_panel(const Product<T>& p, int64_t lane) {
  constexpr int rows = tile_rows(Vectors);
  int64_t row = 0;
  for (; row + rows <= p.rows; row += rows) tile_product<T, rows, Vectors>(p, row, lane);
  last_rows<T, rows - 1, Vectors>(p, row, lane);
}

template <class T>
void product(const Product<T>& p) {
  int64_t left = p.lanes / kWidth<T>;
  // Panels of even width: 5 vectors as 3 + 2, not 4 + 1.
  for (int64_t lane = 0, panels = (left + kTileVectors - 1) / kTileVectors; panels > 0; --panels) {
    const int64_t vectors = (left + panels - 1) / panels;
    if (vectors == 1) lane_panel<T, 1>(p, lane);
    if (vectors == 2) lane_panel<T, 2>(p, lane);
    if constexpr (kTileVectors == 4) {
      if (vectors == 3) lane_panel<T, 3>(p, lane);
      if (vectors == 4) lane_panel<T, 4>(p, lane);
    }
    lane += vectors * kWidth<T>;
    left -= vectors;
  }
}

template <class T>
void masked_product(const Product<T>& p, const PairMask& m) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t l = 0; l < p.lanes; ++l) {
      const int32_t* mask = m.mask + r * m.row + l * m.lane;
      T sum = 0;
      for (int64_t d = 0; d < p.depth; ++d) {
        const T next = sum + p.a[r * p.a_row + d * p.a_depth] * p.b[d * p.b_row + l];
        sum = mask[d * m.depth] != 0 ? next : sum;
      }
      T& c = p.c[r * p.c_row + l];
      c = p.mode == Product<T>::store ? sum : p.mode == Product<T>::add ? c + sum : c * p.factor[l] + sum;
    }
  }
}

/// 0 x is 0 unless x is infinite or NaN; sums of these stay 0. Four chains of additions.
template <class T>
bool finite(const T* data, int64_t rows, int64_t columns, int64_t row, int64_t column) {
  Vector<T> sums[4] = {};
  const Vector<T> zero{};
  T sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const T* line = data + r * row;
    int64_t c = 0;
    if (column == 1) {
      for (; c + 4 * kWidth<T> <= columns; c += 4 * kWidth<T>) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[v] += *reinterpret_cast<const Vector<T>*>(line + c + v * kWidth<T>) * zero;
      }
      for (; c + kWidth<T> <= columns; c += kWidth<T>) sums[0] += *reinterpret_cast<const Vector<T>*>(line + c) * zero;
    }
    for (; c < columns; ++c) sum += line[c * column] * T(0);
  }
  const Vector<T> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int i = 0; i < kWidth<T>; ++i) sum += all[i];
  return sum == 0;
}
