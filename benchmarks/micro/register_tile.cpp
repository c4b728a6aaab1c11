// Highway or the compiler's vector extensions? The inner product of the forward, S^T = K Q^T, as a register tile in
// both, and in intrinsics beside them: ROWS keys x VECTORS vectors of queries, K broadcast from its row-major place,
// Q^T (Dh x W) read along the lanes.
//
//   g++ -std=c++20 -O2 -march=skylake-avx512 -DWITH_HIGHWAY register_tile.cpp -o register_tile && ./register_tile
//
// Prints GFLOP/s of one thread, the variants alternating, medians of 15 rounds.

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#ifdef WITH_HIGHWAY
#include <hwy/highway.h>
#endif

namespace {

constexpr int kDepth = 64;  // Dh
constexpr int kKeys = 192;  // a key block: a multiple of every ROWS below; K and S stay in L2

struct Extensions {
  typedef float Vector __attribute__((vector_size(64), aligned(64)));
  static constexpr const char* name = "vector extensions";
  static Vector zero() { return Vector{}; }
  static Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
  static Vector add_product(float k, Vector q, Vector s) { return s + k * q; }
  static void store(Vector s, float* p) { *reinterpret_cast<Vector*>(p) = s; }
};

struct Intrinsics {
  using Vector = __m512;
  static constexpr const char* name = "intrinsics";
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_load_ps(p); }
  static Vector add_product(float k, Vector q, Vector s) { return _mm512_fmadd_ps(_mm512_set1_ps(k), q, s); }
  static void store(Vector s, float* p) { _mm512_store_ps(p, s); }
};

#ifdef WITH_HIGHWAY
namespace hn = hwy::HWY_NAMESPACE;
struct Highway {
  using Tag = hn::CappedTag<float, 16>;
  using Vector = hn::Vec<Tag>;
  static constexpr const char* name = "Highway";
  static Vector zero() { return hn::Zero(Tag()); }
  static Vector load(const float* p) { return hn::Load(Tag(), p); }
  static Vector add_product(float k, Vector q, Vector s) { return hn::MulAdd(hn::Set(Tag(), k), q, s); }
  static void store(Vector s, float* p) { hn::Store(s, Tag(), p); }
};
#endif

/// S^T[j][w] = sum_d K[j][d] Q^T[d][w] for all keys of the block. Accumulators stay in registers only when every loop
/// over them is unrolled by pragma.
template <class V, int ROWS, int VECTORS>
void product(const float* __restrict k, const float* __restrict qt, float* __restrict st) {
  constexpr int W = 16 * VECTORS;
  for (int j = 0; j < kKeys; j += ROWS) {
    typename V::Vector sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = V::zero();
#pragma GCC unroll 4
    for (int d = 0; d < kDepth; ++d) {
      typename V::Vector q[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) q[v] = V::load(qt + d * W + 16 * v);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = V::add_product(k[(j + r) * kDepth + d], q[v], sums[r][v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) V::store(sums[r][v], st + (j + r) * W + 16 * v);
  }
}

using Product = void (*)(const float*, const float*, float*);

struct Variant {
  const char* name;
  int rows, lanes;
  Product run;
  std::vector<double> gflops;
};

template <class V>
void add(std::vector<Variant>& variants) {
  variants.push_back({V::name, 8, 48, product<V, 8, 3>, {}});
  variants.push_back({V::name, 6, 64, product<V, 6, 4>, {}});
}

double rate(const Variant& variant, const float* k, const float* qt, float* st) {
  constexpr int repeats = 4000;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) {
    variant.run(k, qt, st);
    asm volatile("" : : "r"(st) : "memory");
  }
  const double time = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return 2.0 * repeats * kKeys * kDepth * variant.lanes / time * 1e-9;
}

float* aligned(int count) {
  float* p = static_cast<float*>(_mm_malloc(static_cast<size_t>(count) * sizeof(float), 64));
  for (int i = 0; i < count; ++i) p[i] = static_cast<float>(i % 7) - 3;
  return p;
}

}  // namespace

int main() {
  std::vector<Variant> variants;
  add<Extensions>(variants);
  add<Intrinsics>(variants);
#ifdef WITH_HIGHWAY
  add<Highway>(variants);
#endif
  float *k = aligned(kKeys * kDepth), *qt = aligned(kDepth * 64), *st = aligned(kKeys * 64);
  for (int round = 0; round < 15; ++round)
    for (Variant& variant : variants) variant.gflops.push_back(rate(variant, k, qt, st));
  for (Variant& variant : variants) {
    std::sort(variant.gflops.begin(), variant.gflops.end());
    std::printf("%-18s %d x %d  median %.1f  best %.1f GFLOP/s\n", variant.name, variant.rows, variant.lanes,
                variant.gflops[variant.gflops.size() / 2], variant.gflops.back());
  }
}
