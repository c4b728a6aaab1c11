// Vectors of the instruction set: loads of every storage type, sums across lanes, exp2. Part of few_queries.inl.

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
constexpr int kWidth = REGARD_VECTOR_BYTES / static_cast<int>(sizeof(T));  // lanes of a vector

template <class T>
struct Types;
template <>
struct Types<float> {
  typedef float Vector __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  typedef int32_t Integers __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  typedef int32_t Marks __attribute__((vector_size(REGARD_VECTOR_BYTES)));  // as many as lanes
  using Integer = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float shifter = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits
  static constexpr float least = -126, most = 129;
  static constexpr float negligible = -92;  // 2e-28: nothing beside a weight of a row's largest
  static constexpr int terms = 7;           // Taylor: remainder 5e-9 on |r| <= ln(2) / 2
};
template <>
struct Types<double> {
  typedef double Vector __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  typedef int64_t Integers __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  typedef int32_t Marks __attribute__((vector_size(REGARD_VECTOR_BYTES / 2)));
  using Integer = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double shifter = 0x1.8p52;
  static constexpr double least = -1022, most = 1025;
  static constexpr double negligible = -920;
  static constexpr int terms = 13;  // remainder 4e-18
};
template <class T>
using Vector = typename Types<T>::Vector;
template <class T>
using Integers = typename Types<T>::Integers;

template <class V, class D>
inline V load_bits(const D* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class D>
inline void store_bits(D* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

typedef uint16_t Halves __attribute__((vector_size(REGARD_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(REGARD_VECTOR_BYTES)));

inline Vector<float> widen(Halves h, Bfloat16) {
  return __builtin_bit_cast(Vector<float>, __builtin_convertvector(h, Words) << 16);
}

inline Vector<float> widen(Halves h, Float16) {
#if defined(__AVX512F__)
  return __builtin_bit_cast(Vector<float>, _mm512_maskz_cvtph_ps(0xffff, __builtin_bit_cast(__m256i, h)));
#elif defined(__AVX2__)
  return __builtin_bit_cast(Vector<float>, _mm256_cvtph_ps(__builtin_bit_cast(__m128i, h)));
#else
  // The exponent's bias differs by 112: a product repairs it, of subnormal numbers too. Infinities and NaN keep
  // their mantissa.
  const Words word = __builtin_convertvector(h, Words);
  const Vector<float> value = __builtin_bit_cast(Vector<float>, (word & 0x7fff) << 13) * 0x1p112f;
  const Words special = __builtin_bit_cast(Words, (word & 0x7c00) == 0x7c00) & 0x7f800000u;
  return __builtin_bit_cast(Vector<float>, __builtin_bit_cast(Words, value) | special | (word & 0x8000) << 16);
#endif
}

/// One vector of elements of S as T.
template <class T, class S>
inline Vector<T> load(const S* from) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load_bits<Vector<T>>(from);
  } else {
    return widen(load_bits<Halves>(from), S{});
  }
}

/// The first `count` of a vector, zero beyond; reads no further.
template <class T, class S>
inline Vector<T> load_part(const S* from, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    return __builtin_bit_cast(Vector<T>, _mm512_maskz_loadu_ps(mask, from));
  } else if constexpr (sizeof(S) == 2) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    return widen(__builtin_bit_cast(Halves, _mm256_maskz_loadu_epi16(mask, from)), S{});
  }
#endif
  S part[kWidth<T>] = {};
  __builtin_memcpy(part, from, static_cast<unsigned long>(count) * sizeof(S));
  return load<T>(part);
}

template <class T>
inline void store_part(T* to, Vector<T> v, int64_t count) {
  __builtin_memcpy(to, &v, static_cast<unsigned long>(count) * sizeof(T));
}

template <class T>
inline Vector<T> spread(T value) {
  return value - Vector<T>{};
}

/// 0, 1, ... in the lanes.
template <class T>
inline Integers<T> lane_numbers() {
  Integers<T> n;
  for (int i = 0; i < kWidth<T>; ++i) n[i] = i;
  return n;
}

/// Whether each mark is set, as a mask of T's width.
template <class T>
inline Integers<T> load_marks(const int32_t* marks) {
  return __builtin_convertvector(load_bits<typename Types<T>::Marks>(marks), Integers<T>) != 0;
}

template <int... I>
struct Lanes {};
template <int N>
struct LanesOf;
template <>
struct LanesOf<2> {
  using Type = Lanes<0, 1>;
};
template <>
struct LanesOf<4> {
  using Type = Lanes<0, 1, 2, 3>;
};
template <>
struct LanesOf<8> {
  using Type = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
};
template <>
struct LanesOf<16> {
  using Type = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
};

/// Adds the lanes Half apart: of a into the lanes without bit Half, of b into those with it.
template <int Half, class V, int... I>
inline V fold(V a, V b, Lanes<I...>) {
  constexpr int N = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I & Half) != 0 ? I + N : I)...) +
         __builtin_shufflevector(a, b, ((I & Half) != 0 ? I + N - Half : I + Half)...);
}

/// Lane n of the result is the sum of the lanes of v[n]. Destroys v.
template <class T, int Half = kWidth<T> / 2>
inline Vector<T> sum_each(Vector<T>* v) {
  if constexpr (Half == 0) {
    return v[0];
  } else {
#pragma GCC unroll 16
    for (int n = 0; n < Half; ++n) v[n] = fold<Half>(v[n], v[n + Half], typename LanesOf<kWidth<T>>::Type{});
    return sum_each<T, Half / 2>(v);
  }
}

/// The sum of all lanes.
template <class T>
inline T sum_lanes(Vector<T> v) {
  T total[kWidth<T>];
  store_bits(total, v);
#pragma GCC unroll 16
  for (int half = kWidth<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) total[i] += total[i + half];
  }
  return total[0];
}

/// 1/n!, n = 0..13.
constexpr double kFewInverseFactorial[] = {
    1,          1,           1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

/// 2^n for an exponent of a normal number.
template <class T>
inline Vector<T> power_of_two(Integers<T> n) {
  return __builtin_bit_cast(Vector<T>, (n + Types<T>::bias) << Types<T>::mantissa);
}

/// 2^x under 2 ulp; 0 where that is negligible, because its products would be subnormal and slow; NaN stays. The
/// power of two is applied in two halves so that the last binade is right.
template <class T>
inline Vector<T> exp2_of(Vector<T> x) {
  using F = Types<T>;
  Vector<T> clamped = x < F::least ? spread<T>(F::least) : x;
  clamped = clamped > F::most ? spread<T>(F::most) : clamped;
  const Vector<T> shifted = clamped + F::shifter;
  const Vector<T> t = (clamped - (shifted - F::shifter)) * static_cast<T>(0.69314718055994530942);
  Vector<T> sum = spread<T>(static_cast<T>(kFewInverseFactorial[F::terms]));
#pragma GCC unroll 16
  for (int k = F::terms - 1; k >= 0; --k) sum = sum * t + static_cast<T>(kFewInverseFactorial[k]);
  const Integers<T> n =
      __builtin_bit_cast(Integers<T>, shifted) - __builtin_bit_cast(typename F::Integer, static_cast<T>(F::shifter));
  const Integers<T> half = n >> 1;
  const Vector<T> value = sum * power_of_two<T>(half) * power_of_two<T>(n - half);
  return x < F::negligible ? Vector<T>{} : value;
}
