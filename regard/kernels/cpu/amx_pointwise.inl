// What happens between the products: the online softmax and its chain rule. Included by amx_bf16.cpp.

/// 2^x for x <= 0 up to 3e-6 of it, a thousandth of what rounding to bf16 costs: 2^floor(x) times a polynomial on
/// [0, 1) whose constant is exactly 1, so that a maximum that did not move rescales by exactly 1. 2^-inf = 0.
__m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(0.013426686637f), f, _mm512_set1_ps(0.052242469043f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.241280212998f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.693044841290f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, x);
}

/// bf16 of two rows, element by element in turn: a row of a B tile.
__m512i in_turn(__m512 even, __m512 odd) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

/// Largest dot of each lane among the keys that it sees, at least `maximum`. NaN is left to the weights.
__m512 largest(const PanelAbsorb& p, __m512 maximum) {
  const __m512i limit = _mm512_loadu_si512(p.limit);
  __m512 m[4] = {maximum, maximum, maximum, maximum};  // four chains cover the latency of max
  int64_t j = 0;
  for (; j + 4 <= p.open; j += 4) {
    for (int c = 0; c < 4; ++c) m[c] = _mm512_max_ps(_mm512_load_ps(p.dots + (j + c) * kTile), m[c]);
  }
  for (; j < p.keys; ++j) {
    const __mmask16 seen = _mm512_cmpgt_epi32_mask(limit, _mm512_set1_epi32(static_cast<int32_t>(j)));
    m[0] = _mm512_mask_max_ps(m[0], seen, _mm512_load_ps(p.dots + j * kTile), m[0]);
  }
  return _mm512_max_ps(_mm512_max_ps(m[0], m[1]), _mm512_max_ps(m[2], m[3]));
}

void rescale(const PanelAbsorb& p, __m512 factor) {
  for (int64_t d = 0; d < p.width; ++d) {
    float* row = p.output + d * kTile;
    _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), factor));
  }
}

void absorb(const PanelAbsorb& p) {
  const __m512i limit = _mm512_loadu_si512(p.limit);
  const __m512 scale = _mm512_set1_ps(p.scale);
  const __m512 before = _mm512_loadu_ps(p.state->maximum), maximum = largest(p, before);
  __m512 sum = _mm512_loadu_ps(p.state->sum);
  if (_mm512_cmp_ps_mask(before, maximum, _CMP_NEQ_UQ) != 0) {
    const __m512 factor = exp2(_mm512_mul_ps(_mm512_sub_ps(before, maximum), scale));
    sum = _mm512_mul_ps(sum, factor);
    if (p.output != nullptr) rescale(p, factor);
    _mm512_storeu_ps(p.state->maximum, maximum);
  }
  const __m512 shift = _mm512_mul_ps(maximum, scale);
  __m512 sum_odd = _mm512_setzero_ps();
  char* weights = reinterpret_cast<char*>(p.dots);  // 64 bytes written for every 128 read: never ahead of the reads
  Beside beside(p.beside);
  const int64_t pace = beside.steps() > 0 ? p.keys / beside.steps() / 2 * 2 : p.keys;  // keys between its steps
  int64_t j = 0;
  while (j < p.open) {
    beside.step();
    const int64_t end = pace < 2 ? j + 2 : j + pace < p.open ? j + pace : p.open;
#pragma GCC unroll 4
    for (; j < end; j += 2) {
      const __m512 even = exp2(_mm512_fmsub_ps(_mm512_load_ps(p.dots + j * kTile), scale, shift));
      const __m512 odd = exp2(_mm512_fmsub_ps(_mm512_load_ps(p.dots + (j + 1) * kTile), scale, shift));
      sum = _mm512_add_ps(sum, even);
      sum_odd = _mm512_add_ps(sum_odd, odd);
      _mm512_store_si512(weights + j * 32, in_turn(even, odd));
    }
  }
  for (; j < p.keys; j += 2) {
    __m512 two[2];
    for (int c = 0; c < 2; ++c) {
      const __mmask16 seen = _mm512_cmpgt_epi32_mask(limit, _mm512_set1_epi32(static_cast<int32_t>(j + c)));
      const __m512 y = exp2(_mm512_fmsub_ps(_mm512_load_ps(p.dots + (j + c) * kTile), scale, shift));
      two[c] = _mm512_maskz_mov_ps(seen, y);
    }
    sum = _mm512_add_ps(sum, two[0]);
    sum_odd = _mm512_add_ps(sum_odd, two[1]);
    _mm512_store_si512(weights + j * 32, in_turn(two[0], two[1]));
  }
  beside.finish();
  _mm512_storeu_ps(p.state->sum, _mm512_add_ps(sum, sum_odd));
}

/// The weights and score gradients of one key for 16 queries.
struct PairRow {
  __m512 p, ds;
};

struct ChainLanes {
  __m512 scale, factor, lse, delta;
  __m512i limit;
};

template <bool Masked>
PairRow chain_row(const ChainLanes& lanes, const float* dots, const float* dp, int64_t key) {
  PairRow row;
  row.p = exp2(_mm512_fmsub_ps(_mm512_load_ps(dots), lanes.scale, lanes.lse));
  row.ds = _mm512_mul_ps(_mm512_mul_ps(row.p, lanes.factor), _mm512_sub_ps(_mm512_load_ps(dp), lanes.delta));
  if (Masked) {
    const __mmask16 seen = _mm512_cmpgt_epi32_mask(lanes.limit, _mm512_set1_epi32(static_cast<int32_t>(key)));
    row.p = _mm512_maskz_mov_ps(seen, row.p);
    row.ds = _mm512_maskz_mov_ps(seen, row.ds);
  }
  return row;
}

/// Keys j and j + 1 of both panels.
template <bool Masked>
void chain_pair(const PairChain& c, const ChainLanes (&lanes)[2], int64_t j) {
  PairRow rows[2][2];  // [panel][key]
  const int64_t other = c.keys * kTile;
#pragma GCC unroll 2
  for (int panel = 0; panel < 2; ++panel) {
#pragma GCC unroll 2
    for (int key = 0; key < 2; ++key) {
      const int64_t at = panel * other + (j + key) * kTile;
      rows[panel][key] = chain_row<Masked>(lanes[panel], c.dots + at, c.dp + at, j + key);
    }
    _mm512_store_si512(c.ds_pairs + panel * c.panel + j * 32, in_turn(rows[panel][0].ds, rows[panel][1].ds));
  }
#pragma GCC unroll 2
  for (int key = 0; key < 2; ++key) {
    const int64_t at = (j + key) / kTile * c.row_tile + (j + key) % kTile * 64;
    _mm512_store_si512(c.p + at, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(rows[1][key].p, rows[0][key].p)));
    _mm512_store_si512(c.ds + at, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(rows[1][key].ds, rows[0][key].ds)));
  }
}

void chain(const PairChain& c) {
  ChainLanes lanes[2];
  for (int panel = 0; panel < 2; ++panel) {
    lanes[panel] = {_mm512_set1_ps(c.scale), _mm512_set1_ps(c.factor), _mm512_loadu_ps(c.lse + panel * kTile),
                    _mm512_loadu_ps(c.delta + panel * kTile), _mm512_loadu_si512(c.limit + panel * kTile)};
  }
  int64_t j = 0;
  for (; j < c.open; j += 2) chain_pair<false>(c, lanes, j);
  for (; j < c.keys; j += 2) chain_pair<true>(c, lanes, j);
}

/// The even elements of 32 bf16 as floats, and the odd ones.
__m512 even_floats(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
__m512 odd_floats(__m512i x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

void row_dots(const RowDots& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < p.columns; c += kTileDepth) {
      const __m512i a = load_row(p.a + r * p.a_row + c * p.a_column, p.a_column, p.columns - c);
      const __m512i b = load_row(p.b + r * p.b_row + c * p.b_column, p.b_column, p.columns - c);
      sum = _mm512_fmadd_ps(even_floats(a), even_floats(b), sum);
      sum = _mm512_fmadd_ps(odd_floats(a), odd_floats(b), sum);
    }
    p.out[r] = _mm512_reduce_add_ps(sum);
  }
}
