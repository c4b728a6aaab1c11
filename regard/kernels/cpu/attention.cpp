// Chooses the kernel of a call: few queries a key head, bfloat16 on AMX, or tiles.
#include "regard/kernels/attention.h"

#include <type_traits>

#include "regard/algebra/derivative.h"
#include "regard/base/error.h"
#include "regard/kernels/cpu/amx.h"
#include "regard/kernels/cpu/few_queries.h"
#include "regard/kernels/cpu/program_cache.h"
#include "regard/kernels/cpu/tile_attention.h"
#include "regard/kernels/cpu/zero.h"

namespace regard::kernels {
namespace {

template <class T, class S>
bool on_amx(const Attention<T, S>& call) {
  if constexpr (std::is_same_v<S, bfloat16>) return amx_refusal(call).empty();
  return false;
}

template <class T, class S>
void zero_keys(const Attention<T, S>& call, const AttentionGradient<T, S>& g) {
  zero(g.k, call.B * call.Hk * call.N * call.Dh);
  zero(g.v, call.B * call.Hk * call.N * call.Dv);
}

/// Whether every feature of every key is written once, so that nothing needs to be zeroed.
bool writes_all_keys(const AttentionSpec& spec, int64_t width) {
  const PairExpressions pairs = expressions_of(spec);
  if (pairs.masked() || pairs.weight.defined()) return false;
  const std::vector<Expr> dots = dots_of({pairs.score});
  if (dots.size() != 1) return false;
  const Node& dot = dots.front().node();
  return dot.begin == 0 && (dot.end < 0 || dot.end == width);
}

}  // namespace

template <class T, class S>
bool reads_in_place(const Attention<T, S>& call) {
  return std::is_same_v<T, S> || few_queries_take(call) || on_amx(call);
}

template <class T, class S>
bool reads_in_place(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient) {
  return std::is_same_v<T, S> || few_queries_take(call, gradient) || on_amx(call);
}

template <class T, class S>
bool reads_pages(const Attention<T, S>& call) {
  return call.pages.size > 0 && few_queries_take(call);
}

template <class T, class S>
void attention_forward(const Attention<T, S>& call) {
  if (few_queries_take(call)) return few_queries_forward(call);
  if (call.pages.size > 0) fail("attention", "few queries over pages", std::to_string(call.M) + " of a head");
  if constexpr (std::is_same_v<S, bfloat16>) {
    if (on_amx(call)) return amx_forward(call);
  }
  if constexpr (std::is_same_v<T, S>) {
    tile_forward(call);
  } else {
    fail("attention", "a storage that some kernel reads in place", "16 bits");
  }
}

template <class T, class S>
void attention_backward(const Attention<T, S>& call, const AttentionGradient<T, S>& gradient) {
  if (call.pages.size > 0) fail("attention", "keys and values in order for a backward pass", "pages");
  if (few_queries_take(call, gradient)) {
    zero(gradient.q, call.B * call.H * call.M * call.Dh);
    if (!writes_all_keys(*call.spec, call.Dh)) zero_keys(call, gradient);
    return few_queries_backward(call, gradient);
  }
  if constexpr (std::is_same_v<S, bfloat16>) {
    if (on_amx(call)) {
      zero(gradient.q, call.B * call.H * call.M * call.Dh);
      zero_keys(call, gradient);
      return amx_backward(call, gradient);
    }
  }
  if constexpr (std::is_same_v<T, S>) {
    tile_backward(call, gradient);
  } else {
    fail("attention", "a storage that some kernel reads in place", "16 bits");
  }
}

#define REGARD_INSTANTIATE(T, S)                                                        \
  template bool reads_in_place(const Attention<T, S>&);                                 \
  template bool reads_in_place(const Attention<T, S>&, const AttentionGradient<T, S>&); \
  template bool reads_pages(const Attention<T, S>&);                                    \
  template void attention_forward(const Attention<T, S>&);                              \
  template void attention_backward(const Attention<T, S>&, const AttentionGradient<T, S>&);
REGARD_INSTANTIATE(float, float)
REGARD_INSTANTIATE(double, double)
REGARD_INSTANTIATE(float, bfloat16)
REGARD_INSTANTIATE(float, float16)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
