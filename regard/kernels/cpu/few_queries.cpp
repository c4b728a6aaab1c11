// Which calls the few-query kernel takes.
#include "regard/kernels/cpu/few_queries.h"

#include <algorithm>

#include "regard/kernels/cpu/checks.h"
#include "regard/kernels/cpu/few_queries_tile.h"

namespace regard::kernels {
namespace {

/// Rows a key head up to which reading K and V once beats the tile kernel (measured: alike at 8), and the keys from
/// which there is anything to read.
constexpr int64_t kMostRows = 8, kLeastKeys = 64;

/// Dots of the call's own q and k only.
bool own_dots(const AttentionSpec& spec) { return spec.operands().empty(); }

}  // namespace

template <class T, class S>
bool few_queries_take(const Attention<T, S>& call) {
  if (call.spec == nullptr || call.B <= 0 || call.H <= 0 || call.Hk <= 0 || call.M <= 0) return false;
  if (call.Dh <= 0 || call.Dv <= 0 || call.H % call.Hk != 0) return false;
  if (call.N < kLeastKeys && call.pages.size == 0) return false;
  if (call.H / call.Hk * call.M > kMostRows) return false;
  return softmax_refusal(*call.spec).empty() && own_dots(*call.spec);
}

template <class T, class S>
bool few_queries_take(const Attention<T, S>& call, const AttentionGradient<T, S>&) {
  if (!few_queries_take(call) || call.pages.size > 0) return false;
  return std::none_of(call.captures.begin(), call.captures.end(),
                      [](const Capture& capture) { return capture.gradient != nullptr; });
}

#define REGARD_INSTANTIATE(T, S)                          \
  template bool few_queries_take(const Attention<T, S>&); \
  template bool few_queries_take(const Attention<T, S>&, const AttentionGradient<T, S>&);
REGARD_INSTANTIATE(float, float)
REGARD_INSTANTIATE(float, bfloat16)
REGARD_INSTANTIATE(float, float16)
REGARD_INSTANTIATE(double, double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
