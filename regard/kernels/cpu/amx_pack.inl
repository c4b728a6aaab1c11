// Arrays to tiles and back. Included by amx_bf16.cpp.

/// The transpose of 16 x 16 elements of four bytes.
void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {  // x[i + c]: column c of each quarter, rows i to i + 3
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(x[c], x[c + 4], 0x88), high01 = _mm512_shuffle_i32x4(x[c], x[c + 4], 0xdd);
    const __m512i low23 = _mm512_shuffle_i32x4(x[c + 8], x[c + 12], 0x88);
    const __m512i high23 = _mm512_shuffle_i32x4(x[c + 8], x[c + 12], 0xdd);
    y[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    y[c + 8] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    y[c + 4] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    y[c + 12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

/// `count` <= 32 elements of a row, zeros behind them.
__m512i load_row(const uint16_t* row, int64_t column, int64_t count) {
  if (count >= kTileDepth && column == 1) return _mm512_loadu_si512(row);
  const __mmask32 present = count >= kTileDepth ? ~__mmask32(0) : (__mmask32(1) << (count > 0 ? count : 0)) - 1;
  if (column == 1) return _mm512_maskz_loadu_epi16(present, row);
  alignas(64) uint16_t values[kTileDepth] = {};
  for (int64_t c = 0; c < count && c < kTileDepth; ++c) values[c] = row[c * column];
  return _mm512_load_si512(values);
}

/// 16 rows of 32 columns.
void load_rows(__m512i (&x)[16], const TilePack& p, int64_t row, int64_t column) {
  const uint16_t* data = p.data + row * p.row + column * p.column;
  const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(p.negate ? 0x8000 : 0));
  for (int r = 0; r < 16; ++r) {
    x[r] = row + r < p.rows ? load_row(data + r * p.row, p.column, p.columns - column) : _mm512_setzero_si512();
    x[r] = _mm512_xor_si512(x[r], sign);
  }
}

/// 32 rows of 16 columns: x[r] = rows 2 r and 2 r + 1, their elements in turn.
void load_pairs(__m512i (&x)[16], const TilePack& p, int64_t row, int64_t column) {
  const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(p.negate ? 0x8000 : 0));
  const int64_t columns = p.columns - column < 16 ? p.columns - column : 16;
  const uint16_t* data = p.data + row * p.row + column * p.column;
  for (int r = 0; r < 16; ++r, data += 2 * p.row) {
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    if (row + 2 * r < p.rows) even = load_row(data, p.column, columns);
    if (row + 2 * r + 1 < p.rows) odd = load_row(data + p.row, p.column, columns);
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(even));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(odd)), 16);
    x[r] = _mm512_xor_si512(_mm512_or_si512(low, high), sign);
  }
}

void pack(const TilePack& p) {
  const bool by_pairs = p.packing == Packing::pairs || p.packing == Packing::pairs_across;
  const bool across = p.packing == Packing::across || p.packing == Packing::pairs_across;
  const int64_t rows = by_pairs ? kTileDepth : kTile, columns = by_pairs ? kTile : kTileDepth;
  char* line = p.out;
  for (int64_t row = 0; row < p.rows; row += rows, line += p.row_tile) {
    char* out = line;
    for (int64_t column = 0; column < p.columns; column += columns, out += p.column_tile) {
      __m512i x[16];
      if (by_pairs) {
        load_pairs(x, p, row, column);
      } else {
        load_rows(x, p, row, column);
      }
      if (across) transpose(x);
      for (int r = 0; r < 16; ++r) _mm512_store_si512(out + 64 * r, x[r]);
    }
  }
}

/// Whether no element is NaN or infinite: those alone have every bit of the exponent.
bool finite(const uint16_t* data, int64_t row, int64_t column, int64_t rows, int64_t columns) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 found = 0;
  for (int64_t r = 0; r < rows; ++r, data += row) {
    for (int64_t c = 0; c < columns; c += kTileDepth) {
      const __m512i x = load_row(data + c * column, column, columns - c);
      found |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(x, exponent), exponent);
    }
  }
  return found == 0;
}

/// 16 floats as bf16, `count` of them written.
void store_bf16(uint16_t* out, int64_t column, int64_t count, __m512 x) {
  const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  if (column == 1) {
    _mm256_mask_storeu_epi16(out, static_cast<__mmask16>((1u << count) - 1), rounded);
    return;
  }
  alignas(32) uint16_t values[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(values), rounded);
  for (int64_t c = 0; c < count; ++c) out[c * column] = values[c];
}

void write(const PanelOut& p) {
  for (int64_t first = 0; first < p.width; first += kTile) {
    const int64_t columns = p.width - first < kTile ? p.width - first : kTile;
    const __m512 factor = _mm512_loadu_ps(p.factor);
    __m512i x[16];
    for (int d = 0; d < 16; ++d) {
      const float* from = p.panel + (first + d) * kTile;
      __m512 sum = _mm512_load_ps(from);
      for (int64_t part = 1; part < p.parts; ++part) sum = _mm512_add_ps(sum, _mm512_load_ps(from + part * p.part));
      // A query that saw no key has the factor 0 and keeps nothing, not even NaN.
      x[d] = _mm512_castps_si512(_mm512_maskz_mul_ps(_mm512_cmp_ps_mask(factor, _mm512_setzero_ps(), _CMP_NEQ_UQ), sum, factor));
    }
    transpose(x);
    for (int64_t l = 0; l < p.count; ++l) {
      const __m512 row = _mm512_castsi512_ps(x[l]);
      if (p.bf16 != nullptr) {
        store_bf16(p.bf16 + l * p.row + first * p.column, p.column, columns, row);
      } else {
        float* out = p.floats + l * p.width + first;
        const auto present = static_cast<__mmask16>((1u << columns) - 1);
        _mm512_mask_storeu_ps(out, present, _mm512_add_ps(_mm512_maskz_loadu_ps(present, out), row));
      }
    }
  }
}
