// The probe's loops for one instruction set. Included once by each machine_*.cpp, which defines REGARD_ISA (the
// namespace) and REGARD_VECTOR_BYTES. Vectors of the compiler: the operations are those of the target's widest
// registers, and a * b + c of the same vectors becomes one multiply-add where the set has it.
#include <cstdint>

#include "regard/kernels/cpu/machine.h"

// Hides a register's value from the optimizer.
#if defined(__AVX512F__)
#define REGARD_HIDE(x) asm volatile("" : "+v"(x))
#elif defined(__x86_64__)
#define REGARD_HIDE(x) asm volatile("" : "+x"(x))
#elif defined(__aarch64__)
#define REGARD_HIDE(x) asm volatile("" : "+w"(x))
#else
#define REGARD_HIDE(x) asm volatile("" : "+m"(x))
#endif

namespace regard::kernels::REGARD_ISA {
namespace {

typedef float Vector __attribute__((vector_size(REGARD_VECTOR_BYTES)));
constexpr int kWidth = REGARD_VECTOR_BYTES / sizeof(float);

// Two multiply-add units of latency 4 need 8 chains; with 10 none waits, and 16 registers hold them.
constexpr int kChains = 10;

double fma(int64_t rounds) {
  Vector sums[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sums[i] = Vector{} + static_cast<float>(i);
  Vector a = Vector{} + 0.999f, b = Vector{} + 0.001f;
  REGARD_HIDE(a);
  REGARD_HIDE(b);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * a + b;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) REGARD_HIDE(sums[i]);
  return static_cast<double>(rounds) * kChains * kWidth * 2;
}

float sum(const float* data, int64_t count) {
  Vector sums[8] = {};
  for (int64_t i = 0; i + 8 * kWidth <= count; i += 8 * kWidth) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) sums[v] += *reinterpret_cast<const Vector*>(data + i + v * kWidth);
  }
  Vector total = sums[0];
  for (int v = 1; v < 8; ++v) total += sums[v];
  float out = 0;
  for (int l = 0; l < kWidth; ++l) out += total[l];
  return out;
}

}  // namespace

extern const MachineLoops machine_loops;
const MachineLoops machine_loops{fma, sum};

}  // namespace regard::kernels::REGARD_ISA
