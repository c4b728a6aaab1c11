// Elementary functions written so that loops over them vectorize: no branches, no calls. Part of primitives.inl.

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(REGARD_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int64_t kWidth = REGARD_VECTOR_BYTES / sizeof(T);

/// What the two precisions differ in.
template <class T>
struct Format;

template <>
struct Format<float> {
  using Bits = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float shifter = 0x1.8p23f;      // adding it rounds to an integer, kept in the low bits
  static constexpr float ln2_high = 0x1.62e3p-1f;  // 16 bits: exact times small exponents
  static constexpr float ln2_low = 0x1.2fefa2p-17f;
  static constexpr float least = -105, most = 89;  // exp gives 0 and inf beyond
  static constexpr float negligible = -92;         // 2^-92 = 2e-28: nothing beside a weight of a row's largest
  static constexpr int terms = 7;                  // Taylor: remainder 5e-9 on |r| <= ln(2) / 2
  static constexpr float infinity = __builtin_inff();
};

template <>
struct Format<double> {
  using Bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double shifter = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42feep-1;  // 32 bits: exact times any exponent
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double least = -746, most = 710;
  static constexpr double negligible = -920;
  static constexpr int terms = 13;  // remainder 4e-18
  static constexpr double infinity = __builtin_inf();
};

template <class T>
using VectorIndex = Vector<typename Format<T>::Bits>;

/// 1/n!, n = 1..13.
constexpr double kInverseFactorial[] = {
    1,          1,           1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

/// 2^n for an exponent of a normal number.
template <class T>
inline T power_of_two(typename Format<T>::Bits n) {
  return __builtin_bit_cast(T, (n + Format<T>::bias) << Format<T>::mantissa);
}

/// x = n ln 2 + r, |r| <= ln(2) / 2: n, and e^r - 1.
template <class T>
struct Reduced {
  typename Format<T>::Bits n;
  T rest;
};

template <class T>
inline Reduced<T> reduce(T x) {
  using F = Format<T>;
  constexpr T inverse_ln2 = static_cast<T>(1.4426950408889634074);
  const T shifted = x * inverse_ln2 + F::shifter;
  const T n = shifted - F::shifter;
  const T r = (x - n * F::ln2_high) - n * F::ln2_low;
  T sum = static_cast<T>(kInverseFactorial[F::terms]);
#pragma GCC unroll 16
  for (int k = F::terms - 1; k >= 1; --k) sum = sum * r + static_cast<T>(kInverseFactorial[k]);
  using Bits = typename F::Bits;
  return {static_cast<Bits>(__builtin_bit_cast(Bits, shifted) - __builtin_bit_cast(Bits, F::shifter)), sum * r};
}

template <class T>
inline T clamp(T x, T low, T high) {
  x = x < low ? low : x;  // NaN stays
  return x > high ? high : x;
}

/// e^x, under 2 ulp. The power of two is applied in two halves so that subnormal results and the last binade are right.
template <class T>
inline T exp_of(T x) {
  const auto [n, rest] = reduce(clamp(x, Format<T>::least, Format<T>::most));
  const auto half = n >> 1;
  return (rest + 1) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

/// 2^r is exactly 1 at 0, else a row whose maximum stays would be rescaled at every block. Float: the least relative
/// error of degree 6, 2e-9 on |r| <= 1/2 and on 0 <= r < 1, so that rounding is what remains (degree 5 would double the
/// error and save half a percent); double: the Taylor series, remainder 4e-18.
constexpr float kExp2Centered[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6aee8p-5f,
                                   0x1.3b2d4cp-7f, 0x1.5f3e52p-10f, 0x1.41fbcap-13f};
constexpr float kExp2Floored[] = {0x1.62e42cp-1f, 0x1.ebfd58p-3f,  0x1.c68912p-5f,
                                  0x1.3d0b92p-7f, 0x1.46d64cp-10f, 0x1.c54176p-13f};
constexpr double kLn2 = 0.693147180559945309417;

inline Vector<float> exp2_rest(Vector<float> r, const float (&coefficient)[6]) {
  Vector<float> sum = Vector<float>{} + coefficient[5];
#pragma GCC unroll 5
  for (int k = 4; k >= 0; --k) sum = sum * r + coefficient[k];
  return sum * r + 1.0f;
}
inline Vector<float> exp2_centered(Vector<float> r) { return exp2_rest(r, kExp2Centered); }
inline Vector<double> exp2_centered(Vector<double> r) {
  const Vector<double> x = r * kLn2;
  Vector<double> sum = Vector<double>{} + kInverseFactorial[13];
#pragma GCC unroll 16
  for (int k = 12; k >= 0; --k) sum = sum * x + kInverseFactorial[k];
  return sum;
}

/// 2^x, and 0 where that is negligible: its products with gradients would be subnormal, a hundred times slower.
/// NaN stays. For x below the format's largest exponent.
template <class T>
inline Vector<T> weight_exp2(Vector<T> x) {
  const Vector<T> shifted = x + Format<T>::shifter;
  const Vector<T> p = exp2_centered(x - (shifted - Format<T>::shifter));
  const VectorIndex<T> bits =
      reinterpret_cast<VectorIndex<T>>(p) + (reinterpret_cast<VectorIndex<T>>(shifted) << Format<T>::mantissa);
  return x < Format<T>::negligible ? Vector<T>{} : reinterpret_cast<Vector<T>>(bits);
}

#ifdef __AVX512F__
/// Two instructions do what seven do above: x - floor(x), and the product with 2^floor(x).
template <>
inline Vector<float> weight_exp2<float>(Vector<float> x) {
  constexpr int kFloor = 1;  // rounding of the reduction: towards -inf, no digits kept
  const Vector<float> p = exp2_rest(reinterpret_cast<Vector<float>>(_mm512_reduce_ps(__m512(x), kFloor)), kExp2Floored);
  const __mmask16 counts = _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(Format<float>::negligible), _CMP_NLT_UQ);
  return reinterpret_cast<Vector<float>>(_mm512_maskz_scalef_ps(counts, __m512(p), __m512(x)));
}
#endif

/// tanh x = u / (u + 2), u = e^2x - 1 = 2^n (e^r - 1) + (2^n - 1): no cancellation near 0.
template <class T>
inline T tanh_of(T x) {
  constexpr T bound = 20;  // 1 - tanh(20) is below the rounding of both types
  const auto [n, rest] = reduce(2 * clamp(x, -bound, bound));
  const T power = power_of_two<T>(n);
  const T u = power * rest + (power - 1);
  return u / (u + 2);
}

template <class T>
inline T sigmoid_of(T x) {
  return 1 / (1 + exp_of(-x));
}

inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }
inline float sqrt_of(float x) { return __builtin_sqrtf(x); }
inline double sqrt_of(double x) { return __builtin_sqrt(x); }
inline float cos_of(float x) { return __builtin_cosf(x); }
inline double cos_of(double x) { return __builtin_cos(x); }
inline float sin_of(float x) { return __builtin_sinf(x); }
inline double sin_of(double x) { return __builtin_sin(x); }
inline float pow_of(float x, float y) { return __builtin_powf(x, y); }
inline double pow_of(double x, double y) { return __builtin_pow(x, y); }
inline float floor_of(float x) { return __builtin_floorf(x); }
inline double floor_of(double x) { return __builtin_floor(x); }
inline float abs_of(float x) { return __builtin_fabsf(x); }
inline double abs_of(double x) { return __builtin_fabs(x); }

/// x - y floor(x / y) with the sign of y.
template <class T>
inline T mod_of(T x, T y) {
  const T rest = static_cast<T>(__builtin_fmod(x, y));
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}

/// Integer division through doubles, which hold every quotient of 32-bit integers exactly enough; 0 for y = 0.
inline int32_t floor_div_of(int32_t x, int32_t y) {
  const double quotient = y == 0 ? 0.0 : double(x) / double(y);
  const double low = __builtin_floor(quotient);
  return static_cast<int32_t>(low > 2147483647.0 ? 2147483647.0 : low);
}

/// Integers wrap around, as in torch.
inline int32_t wrap_add(int32_t x, int32_t y) { return static_cast<int32_t>(uint32_t(x) + uint32_t(y)); }
inline int32_t wrap_sub(int32_t x, int32_t y) { return static_cast<int32_t>(uint32_t(x) - uint32_t(y)); }
inline int32_t wrap_mul(int32_t x, int32_t y) { return static_cast<int32_t>(uint32_t(x) * uint32_t(y)); }
inline int32_t mod_of(int32_t x, int32_t y) { return y == 0 ? 0 : wrap_sub(x, wrap_mul(y, floor_div_of(x, y))); }
inline int32_t pow_of(int32_t x, int32_t y) {
  uint32_t result = 1, base = static_cast<uint32_t>(x);
  if (y < 0) return x == 1 ? 1 : x == -1 ? (y % 2 == 0 ? 1 : -1) : 0;
  for (uint32_t n = static_cast<uint32_t>(y); n != 0; n >>= 1, base *= base) result = n & 1 ? result * base : result;
  return static_cast<int32_t>(result);
}

/// min and max give NaN when either is NaN.
template <class T>
inline T min_of(T x, T y) {
  return (x < y) | (x != x) ? x : y;
}
template <class T>
inline T max_of(T x, T y) {
  return (x > y) | (x != x) ? x : y;
}
