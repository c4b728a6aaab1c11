#include "regard/kernels/cpu/folded.h"

namespace regard::kernels {
namespace {

/// The stride of the rows (head of the group, query) of an array, if there is one.
template <class A>
std::optional<A> fold(A array, int64_t group, int64_t queries) {
  if (queries > 1 && array.head != queries * array.row) return std::nullopt;
  if (queries == 1) array.row = array.head;
  array.head *= group;
  return array;
}

}  // namespace

template <class T>
std::optional<Attention<T>> folded(const Plan<T>& plan) {
  const Attention<T>& call = plan.call;
  const int64_t group = call.Hk > 0 ? call.H / call.Hk : 1;
  if (!plan.plain || plan.pairs.masked() || plan.blocks || plan.sequences || call.sinks != nullptr) return std::nullopt;
  if (group == 1 || call.M >= kLanes) return std::nullopt;
  const auto q = fold(call.q, group, call.M);
  if (!q) return std::nullopt;
  Attention<T> one = call;
  one.H = call.Hk;
  one.M = group * call.M;
  one.q = *q;
  if (call.o.data == nullptr) return one;  // of a backward
  const auto o = fold(call.o, group, call.M);
  if (!o) return std::nullopt;
  one.o = *o;
  return one;
}

template <class T>
std::optional<AttentionGradient<T>> folded(const Attention<T>& call, const AttentionGradient<T>& gradient) {
  const int64_t group = call.H / call.Hk;
  const auto grad_o = fold(gradient.grad_o, group, call.M), o = fold(gradient.o, group, call.M);
  if (!grad_o || !o) return std::nullopt;
  AttentionGradient<T> one = gradient;
  one.grad_o = *grad_o;
  one.o = *o;
  return one;
}

#define REGARD_INSTANTIATE(T)                                  \
  template std::optional<Attention<T>> folded(const Plan<T>&); \
  template std::optional<AttentionGradient<T>> folded(const Attention<T>&, const AttentionGradient<T>&);
REGARD_INSTANTIATE(float)
REGARD_INSTANTIATE(double)
#undef REGARD_INSTANTIATE

}  // namespace regard::kernels
