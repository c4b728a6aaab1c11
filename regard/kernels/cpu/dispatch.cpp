// Chooses the instruction set once: the widest that the processor has and REGARD_ISA allows.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "regard/base/error.h"
#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/tile.h"

namespace regard::kernels {

namespace baseline {
extern const Primitives<float> floats;
extern const Primitives<double> doubles;
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
extern const Primitives<float> floats;
extern const Primitives<double> doubles;
}  // namespace avx2
namespace avx512 {
extern const Primitives<float> floats;
extern const Primitives<double> doubles;
}  // namespace avx512
#endif

namespace {

struct Choice {
  const char* name;
  const Primitives<float>* floats;
  const Primitives<double>* doubles;
};

enum Level { baseline_level, avx2_level, avx512_level };

Level supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return avx512_level;
  if (has_avx2) return avx2_level;
#endif
  return baseline_level;
}

Level allowed() {
  const char* wanted = std::getenv("REGARD_ISA");
  const std::string name = wanted == nullptr ? "" : wanted;
  if (name.empty() || name == "avx512") return avx512_level;
  if (name == "avx2") return avx2_level;
  if (name == "baseline") return baseline_level;
  fail("REGARD_ISA", "baseline, avx2 or avx512", "'" + name + "'");
}

const Choice& choice() {
  static const Choice chosen = [] {
    const Level level = std::min(supported(), allowed());
#if defined(__x86_64__)
    if (level == avx512_level) return Choice{"avx512", &avx512::floats, &avx512::doubles};
    if (level == avx2_level) return Choice{"avx2", &avx2::floats, &avx2::doubles};
#endif
    (void)level;
    return Choice{"baseline", &baseline::floats, &baseline::doubles};
  }();
  return chosen;
}

}  // namespace

template <>
const Primitives<float>& primitives<float>() {
  return *choice().floats;
}

template <>
const Primitives<double>& primitives<double>() {
  return *choice().doubles;
}

std::string isa() { return choice().name; }

}  // namespace regard::kernels
