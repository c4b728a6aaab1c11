// Chooses the instruction set once: the widest that the processor has and REGARD_ISA allows.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

#include "regard/base/error.h"
#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/correlation_tile.h"
#include "regard/kernels/cpu/few_queries_kernels.h"
#include "regard/kernels/cpu/isa.h"
#include "regard/kernels/cpu/machine.h"
#include "regard/kernels/cpu/tile.h"

namespace regard::kernels {

#define REGARD_DECLARE(SET)                                       \
  namespace SET {                                                 \
  extern const Primitives<float> floats;                          \
  extern const Primitives<double> doubles;                        \
  extern const FewPrimitives<float> few_floats;                   \
  extern const FewPrimitives<double> few_doubles;                 \
  extern const CorrelationPrimitives<float> correlation_floats;   \
  extern const CorrelationPrimitives<double> correlation_doubles; \
  extern const MachineLoops machine_loops;                        \
  }
REGARD_DECLARE(baseline)
#if defined(__x86_64__)
REGARD_DECLARE(avx2)
REGARD_DECLARE(avx512)
#endif
#undef REGARD_DECLARE

namespace {

template <class T>
struct Tables {
  const Primitives<T>* tiles;
  const FewPrimitives<T>* few;
  const CorrelationPrimitives<T>* correlation;
};

/// Everything that is compiled once an instruction set.
struct Choice {
  const char* name;
  Tables<float> floats;
  Tables<double> doubles;
  const MachineLoops* machine_loops;
};

#define REGARD_CHOICE(NAME, SET)                                                           \
  {                                                                                        \
    NAME, {&SET::floats, &SET::few_floats, &SET::correlation_floats},                      \
        {&SET::doubles, &SET::few_doubles, &SET::correlation_doubles}, &SET::machine_loops \
  }
/// From the narrowest; a processor that has one has all before it.
const Choice kChoices[] = {
    REGARD_CHOICE("baseline", baseline),
#if defined(__x86_64__)
    REGARD_CHOICE("avx2", avx2), REGARD_CHOICE("avx512", avx512),
    REGARD_CHOICE("amx", avx512),  // and tiles for bfloat16; see amx.h
#endif
};
#undef REGARD_CHOICE

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

#define REGARD_INSTANTIATE(T, TABLES)                           \
  template <>                                                   \
  const Primitives<T>& primitives<T>() {                        \
    return *choice().load()->TABLES.tiles;                      \
  }                                                             \
  template <>                                                   \
  const FewPrimitives<T>& few_primitives<T>() {                 \
    return *choice().load()->TABLES.few;                        \
  }                                                             \
  template <>                                                   \
  const CorrelationPrimitives<T>& correlation_primitives<T>() { \
    return *choice().load()->TABLES.correlation;                \
  }
REGARD_INSTANTIATE(float, floats)
REGARD_INSTANTIATE(double, doubles)
#undef REGARD_INSTANTIATE

const MachineLoops& machine_loops() { return *choice().load()->machine_loops; }

std::string isa() { return choice().load()->name; }

}  // namespace regard::kernels
