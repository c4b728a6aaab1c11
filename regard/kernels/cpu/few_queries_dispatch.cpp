// The few-query primitives of the instruction set that dispatch.cpp chose.
#include "regard/kernels/attention.h"
#include "regard/kernels/cpu/few_queries_kernels.h"

namespace regard::kernels {

namespace baseline {
extern const FewPrimitives<float> few_floats;
extern const FewPrimitives<double> few_doubles;
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
extern const FewPrimitives<float> few_floats;
extern const FewPrimitives<double> few_doubles;
}  // namespace avx2
namespace avx512 {
extern const FewPrimitives<float> few_floats;
extern const FewPrimitives<double> few_doubles;
}  // namespace avx512
#endif

#if defined(__x86_64__)
#define REGARD_CHOOSE(TABLE)                      \
  const std::string name = isa();                 \
  if (name == "baseline") return baseline::TABLE; \
  if (name == "avx2") return avx2::TABLE;         \
  return avx512::TABLE; /* or wider, which has all before it */
#else
#define REGARD_CHOOSE(TABLE) return baseline::TABLE;
#endif

template <>
const FewPrimitives<float>& few_primitives<float>() {
  REGARD_CHOOSE(few_floats)
}

template <>
const FewPrimitives<double>& few_primitives<double>() {
  REGARD_CHOOSE(few_doubles)
}

#undef REGARD_CHOOSE

}  // namespace regard::kernels
