// Chooses the instruction set once: the widest that the processor has and REGARD_ISA allows.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include "regard/base/error.h"
#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/isa.h"
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

/// From the narrowest; a processor that has one has all before it.
const Choice kChoices[] = {
    {"baseline", &baseline::floats, &baseline::doubles},
#if defined(__x86_64__)
    {"avx2", &avx2::floats, &avx2::doubles},
    {"avx512", &avx512::floats, &avx512::doubles},
    {"amx", &avx512::floats, &avx512::doubles},  // and tiles for bfloat16; see amx.h
#endif
};

const Choice* widest_supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return &kChoices[amx_usable() ? 3 : 2];
  if (has_avx2) return &kChoices[1];
#endif
  return &kChoices[0];
}

/// The set of this name, whether the processor has it or not.
const Choice* named(const std::string& name) {
  for (const Choice& choice : kChoices) {
    if (name == choice.name) return &choice;
  }
  fail("REGARD_ISA", "baseline, avx2, avx512 or amx", "'" + name + "'");
}

std::atomic<const Choice*>& choice() {
  static std::atomic<const Choice*> chosen = [] {
    const char* wanted = std::getenv("REGARD_ISA");
    const Choice* widest = widest_supported();
    return wanted == nullptr || *wanted == 0 ? widest : std::min(widest, named(wanted));
  }();
  return chosen;
}

}  // namespace

bool use_isa(const std::string& name) {
  const Choice* wanted = named(name);
  if (wanted > widest_supported()) return false;
  choice() = wanted;
  return true;
}

template <>
const Primitives<float>& primitives<float>() {
  return *choice().load()->floats;
}

template <>
const Primitives<double>& primitives<double>() {
  return *choice().load()->doubles;
}

std::string isa() { return choice().load()->name; }

}  // namespace regard::kernels
