#include "regard/ops/blocked.h"

#include <optional>

#include "regard/kernels/attention.h"

namespace regard::ops {
namespace {

template <class S>
kernels::Array4<const S> array_of(const at::Tensor& t) {
  return {static_cast<const S*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <class S>
constexpr at::ScalarType kTypeOf = at::kFloat;
template <>
constexpr at::ScalarType kTypeOf<double> = at::kDouble;
template <>
constexpr at::ScalarType kTypeOf<kernels::bfloat16> = at::kBFloat16;
template <>
constexpr at::ScalarType kTypeOf<kernels::float16> = at::kHalf;

kernels::Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return kernels::Element::boolean;
    case at::kInt:
      return kernels::Element::int32;
    case at::kLong:
      return kernels::Element::int64;
    case at::kDouble:
      return kernels::Element::float64;
    default:
      return kernels::Element::float32;
  }
}

// A dtype that the kernels read: narrow floats as float32, narrow integers as int64.
at::Tensor readable(const at::Tensor& t) {
  const auto type = t.scalar_type();
  if (type == at::kBool || type == at::kInt || type == at::kLong || type == at::kFloat || type == at::kDouble) return t;
  return t.to(at::isFloatingType(type) ? at::kFloat : at::kLong);
}

/// The tensors of a call, kept alive beside the pointers into them: q, k and v stored as S, all else in T.
template <class T, class S>
struct Bound {
  at::Tensor q, k, v, sinks;
  std::vector<at::Tensor> captures, operands;
  kernels::Attention<T, S> call;

  explicit Bound(const Call& source) {
    const auto compute = source.compute();
    q = source.q.to(kTypeOf<S>);
    k = source.k.to(kTypeOf<S>);
    v = source.v.to(kTypeOf<S>);
    call.B = q.size(0);
    call.H = q.size(1);
    call.Hk = k.size(1);
    call.M = q.size(2);
    call.N = k.size(2);
    call.Dh = q.size(3);
    call.Dv = v.size(3);
    call.query_offset = source.query_offset.guard_int(__FILE__, __LINE__);
    call.scale = source.scale();
    call.spec = source.spec.get();
    call.q = array_of<S>(q);
    call.k = array_of<S>(k);
    call.v = array_of<S>(v);
    const auto& names = source.facts->captures;
    for (size_t i = 0; i < names.size(); ++i) {
      captures.push_back(readable(source.captures[i]));
      const at::Tensor& t = captures.back();
      call.captures.push_back(
          {names[i], t.const_data_ptr(), element_of(t.scalar_type()), t.sizes().vec(), t.strides().vec(), nullptr});
    }
    const auto& operand_names = source.facts->operands;
    for (size_t i = 0; i < operand_names.size(); ++i) {
      operands.push_back(source.operands[2 * i].to(compute));
      operands.push_back(source.operands[2 * i + 1].to(compute));
      const at::Tensor &qx = operands[2 * i], &kx = operands[2 * i + 1];
      call.operands.push_back(
          {operand_names[i], array_of<T>(qx), array_of<T>(kx), qx.size(1), qx.size(3), nullptr, nullptr});
    }
    if (source.sinks.defined()) {
      sinks = source.sinks.to(compute).contiguous();
      call.sinks = sinks.const_data_ptr<T>();
      call.sink_count = sinks.size(1);
    }
  }
};

template <class T, class S>
Stripe run(const Call& source, Bound<T, S>& bound) {
  const auto options = bound.q.options();
  Stripe out;
  out.o = at::empty({bound.call.B, bound.call.H, bound.call.M, bound.call.Dv}, options);
  out.lse = at::empty({bound.call.B, bound.call.H, bound.call.M}, options.dtype(source.compute()));
  out.pairs = at::empty({bound.call.B, bound.call.H, bound.call.M, 0}, options.dtype(source.compute()));
  bound.call.o = {static_cast<S*>(out.o.mutable_data_ptr()), out.o.stride(0), out.o.stride(1), out.o.stride(2),
                  out.o.stride(3)};
  bound.call.lse = out.lse.template mutable_data_ptr<T>();
  kernels::attention_forward(bound.call);
  return out;
}

/// None where no kernel reads this storage in place.
template <class T, class S>
std::optional<Stripe> forward(const Call& source) {
  Bound<T, S> bound(source);
  if (!kernels::reads_in_place(bound.call)) return std::nullopt;
  return run(source, bound);
}

template <class T, class S>
std::optional<Stripe> forward_of_pages(const Call& source, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& table) {
  Bound<T, S> bound(source);
  bound.call.k = array_of<S>(k);
  bound.call.v = array_of<S>(v);
  bound.call.pages = {table.const_data_ptr<int64_t>(), table.size(1), k.size(2)};
  if (!kernels::reads_pages(bound.call)) return std::nullopt;
  return run(source, bound);
}

template <class T>
T* fresh(at::Tensor& out, bool wanted, at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!wanted) return nullptr;
  out = at::empty(sizes, options);
  return out.mutable_data_ptr<T>();
}

template <class T>
T* zeroed(at::Tensor& out, bool wanted, at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!wanted) return nullptr;
  out = at::zeros(sizes, options);
  return out.mutable_data_ptr<T>();
}

template <class T, class S>
std::optional<StripeGradient> backward(const Call& source, const at::Tensor& o, const at::Tensor& lse,
                                       const at::Tensor& grad_o, const at::Tensor& grad_lse, const Wanted& wanted) {
  Bound<T, S> bound(source);
  if (!kernels::reads_in_place(bound.call)) return std::nullopt;  // before any gradient is made
  const auto compute = source.compute();
  const auto options = bound.q.options().dtype(compute);
  const at::Tensor output = o.to(kTypeOf<S>), statistic = lse.to(compute).contiguous(),
                   cotangent = grad_o.to(kTypeOf<S>);
  const at::Tensor grad_statistic = grad_lse.defined() ? grad_lse.to(compute).contiguous() : at::Tensor();
  StripeGradient out;
  kernels::AttentionGradient<T, S> gradient;
  gradient.grad_o = array_of<S>(cotangent);
  gradient.o = array_of<S>(output);
  gradient.lse = statistic.const_data_ptr<T>();
  if (grad_statistic.defined()) gradient.grad_lse = grad_statistic.const_data_ptr<T>();
  gradient.q = fresh<T>(out.q, wanted.q, bound.q.sizes(), options);
  gradient.k = fresh<T>(out.k, wanted.k, bound.k.sizes(), options);
  gradient.v = fresh<T>(out.v, wanted.v, bound.v.sizes(), options);
  if (bound.sinks.defined()) gradient.sinks = zeroed<T>(out.sinks, wanted.sinks, bound.sinks.sizes(), options);
  out.captures.resize(bound.captures.size());
  for (size_t i = 0; i < bound.captures.size(); ++i)
    bound.call.captures[i].gradient = zeroed<T>(
        out.captures[i], wanted.captures && bound.captures[i].is_floating_point(), bound.captures[i].sizes(), options);
  out.operands.resize(bound.operands.size());
  for (size_t i = 0; i < bound.call.operands.size(); ++i) {
    bound.call.operands[i].q_gradient =
        zeroed<T>(out.operands[2 * i], wanted.operands, bound.operands[2 * i].sizes(), options);
    bound.call.operands[i].k_gradient =
        zeroed<T>(out.operands[2 * i + 1], wanted.operands, bound.operands[2 * i + 1].sizes(), options);
  }
  if (!kernels::reads_in_place(bound.call, gradient)) return std::nullopt;
  kernels::attention_backward(bound.call, gradient);
  return out;
}

}  // namespace

std::string fused_refusal(const Call& call) {
  if (!call.q.is_cpu()) return "device " + call.q.device().str();
  return kernels::refusal(*call.spec);
}

Stripe blocked_forward(const Call& call) {
  std::optional<Stripe> out;
  if (call.q.scalar_type() == at::kDouble) return *forward<double, double>(call);
  if (call.q.scalar_type() == at::kBFloat16) out = forward<float, kernels::bfloat16>(call);
  if (call.q.scalar_type() == at::kHalf) out = forward<float, kernels::float16>(call);
  return out ? *out : *forward<float, float>(call);
}

std::optional<Stripe> paged_forward(const Call& call, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& table) {
  if (call.q.scalar_type() == at::kDouble) return forward_of_pages<double, double>(call, k, v, table);
  if (call.q.scalar_type() == at::kBFloat16) return forward_of_pages<float, kernels::bfloat16>(call, k, v, table);
  if (call.q.scalar_type() == at::kHalf) return forward_of_pages<float, kernels::float16>(call, k, v, table);
  return forward_of_pages<float, float>(call, k, v, table);
}

StripeGradient blocked_backward(const Call& call, const at::Tensor& o, const at::Tensor& lse, const at::Tensor& grad_o,
                                const at::Tensor& grad_lse, const Wanted& wanted) {
  std::optional<StripeGradient> out;
  const auto run = [&]<class T, class S>() { return backward<T, S>(call, o, lse, grad_o, grad_lse, wanted); };
  if (call.q.scalar_type() == at::kDouble) return *run.template operator()<double, double>();
  if (call.q.scalar_type() == at::kBFloat16) out = run.template operator()<float, kernels::bfloat16>();
  if (call.q.scalar_type() == at::kHalf) out = run.template operator()<float, kernels::float16>();
  return out ? *out : *run.template operator()<float, float>();
}

}  // namespace regard::ops
