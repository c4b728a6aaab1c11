// Which kernels of the fused path could run a call, and what stands in the way of the others: the kernels are asked,
// about the call itself and about its neighbors, so that no limit of theirs is repeated here.
#include "regard/kernels/cpu/amx.h"
#include "regard/kernels/cpu/checks.h"
#include "regard/kernels/cpu/few_queries.h"
#include "regard/ops/blocked.h"
#include "regard/ops/explain.h"

namespace regard::ops {
namespace {

/// The sizes of a call without its tensors.
template <class T, class S>
kernels::Attention<T, S> sizes_of(const Call& source) {
  kernels::Attention<T, S> call;
  call.B = source.q.size(0);
  call.H = source.q.size(1);
  call.Hk = source.k.size(1);
  call.M = source.q.size(2);
  call.N = source.k.size(2);
  call.Dh = source.q.size(3);
  call.Dv = source.v.size(3);
  call.query_offset = source.query_offset.guard_int(__FILE__, __LINE__);
  call.scale = source.scale();
  call.spec = source.spec.get();
  return call;
}

/// The largest n in [1, most] of which `holds` is true, which it is of 1 and from some n on no more.
template <class Holds>
int64_t largest(int64_t most, Holds holds) {
  int64_t low = 1, high = most + 1;
  while (high - low > 1) (holds((low + high) / 2) ? low : high) = (low + high) / 2;
  return low;
}

/// Why the few-query kernel does not take these sizes.
template <class T, class S>
std::string few_queries_refusal(const kernels::Attention<T, S>& call) {
  using kernels::few_queries_take;
  if (few_queries_take(call)) return "";
  if (const std::string reason = kernels::softmax_refusal(*call.spec); !reason.empty()) return reason;
  constexpr int64_t kMost = 1 << 20;
  kernels::Attention<T, S> one = call;
  one.M = 1;
  one.Hk = one.H;
  const int64_t rows = call.Hk > 0 ? call.H / call.Hk * call.M : 0;
  if (few_queries_take(one)) {
    const int64_t most = largest(kMost, [&](int64_t m) {
      auto more = one;
      more.M = m;
      return few_queries_take(more);
    });
    return std::to_string(rows) + " query rows a key head (H / Hk x M), more than " + std::to_string(most);
  }
  one.N = kMost;
  if (few_queries_take(one)) {
    const int64_t few = largest(kMost, [&](int64_t n) {
      auto fewer = one;
      fewer.N = n;
      return !few_queries_take(fewer);
    });
    return std::to_string(call.N) + " keys, fewer than " + std::to_string(few + 1);
  }
  if (!call.spec->operands().empty()) return "operands beside q and k";
  return "the sizes of this call";
}

template <class T, class S>
KernelAnswer few_queries(const Call& source) {
  const auto call = sizes_of<T, S>(source);
  KernelAnswer answer{"few_queries", few_queries_refusal(call), ""};
  answer.backward = answer.forward;
  if (!answer.forward.empty()) return answer;
  auto differentiated = call;
  T gradient{};
  for (size_t c = 0; c < source.captures.size(); ++c) {
    kernels::Capture capture;
    capture.name = source.facts->captures[c];
    if (source.captures[c].is_floating_point()) capture.gradient = &gradient;
    differentiated.captures.push_back(capture);
  }
  if (!kernels::few_queries_take(differentiated, kernels::AttentionGradient<T, S>{}))
    answer.backward = source.captures.empty() ? "the backward of these sizes" : "gradients of captures";
  return answer;
}

KernelAnswer few_queries_of(const Call& call) {
  switch (call.q.scalar_type()) {
    case at::kDouble:
      return few_queries<double, double>(call);
    case at::kBFloat16:
      return few_queries<float, kernels::bfloat16>(call);
    case at::kHalf:
      return few_queries<float, kernels::float16>(call);
    default:
      return few_queries<float, float>(call);
  }
}

std::string amx_answer(const Call& call) {
  const auto type = call.q.scalar_type();
  if (type == at::kBFloat16) return kernels::amx_refusal(sizes_of<float, kernels::bfloat16>(call));
  if (type == at::kDouble) return "not bfloat16 but float64";
  return type == at::kHalf ? "not bfloat16 but float16" : "not bfloat16 but float32";
}

}  // namespace

std::vector<KernelAnswer> kernel_answers(const Call& call) {
  const std::string fused = fused_refusal(call);
  std::vector<KernelAnswer> answers(3);
  answers[0].name = "few_queries";
  answers[1].name = "amx";
  answers[2].name = "tile";
  for (auto& answer : answers) answer.forward = answer.backward = fused;
  if (!call.q.is_cpu()) return answers;
  answers[0] = few_queries_of(call);
  answers[1].forward = answers[1].backward = amx_answer(call);
  return answers;
}

std::vector<kernels::Capture> kernel_captures(const Call& call, std::vector<at::Tensor>& kept) {
  std::vector<kernels::Capture> captures;
  for (size_t c = 0; c < call.captures.size(); ++c) {
    const at::Tensor& t = call.captures[c];
    const bool boolean = t.scalar_type() == at::kBool, real = t.is_floating_point();
    kept.push_back(boolean ? t : t.to(real ? at::kDouble : at::kLong));
    captures.push_back({call.facts->captures[c], kept.back().const_data_ptr(),
                        boolean ? kernels::Element::boolean
                        : real  ? kernels::Element::float64
                                : kernels::Element::int64,
                        kept.back().sizes().vec(), kept.back().strides().vec(), nullptr});
  }
  return captures;
}

}  // namespace regard::ops
