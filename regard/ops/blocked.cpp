#include "regard/ops/blocked.h"

#include "regard/kernels/attention.h"

namespace regard::ops {
namespace {

template <class T>
kernels::Array4<T> array_of(const at::Tensor& t) {
  return {t.data_ptr<std::remove_const_t<T>>(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

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

/// The tensors of a call in the kernel's dtype, kept alive beside the pointers into them.
template <class T>
struct Bound {
  at::Tensor q, k, v, sinks;
  std::vector<at::Tensor> captures, operands;
  kernels::Attention<T> call;

  explicit Bound(const Call& source) {
    const auto compute = source.compute();
    q = source.q.to(compute);
    k = source.k.to(compute);
    v = source.v.to(compute);
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
    call.q = array_of<const T>(q);
    call.k = array_of<const T>(k);
    call.v = array_of<const T>(v);
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
          {operand_names[i], array_of<const T>(qx), array_of<const T>(kx), qx.size(1), qx.size(3), nullptr, nullptr});
    }
    if (source.sinks.defined()) {
      sinks = source.sinks.to(compute).contiguous();
      call.sinks = sinks.const_data_ptr<T>();
      call.sink_count = sinks.size(1);
    }
  }
};

template <class T>
Stripe forward(const Call& source) {
  Bound<T> bound(source);
  const auto options = bound.q.options();
  Stripe out;
  out.o = at::empty({bound.call.B, bound.call.H, bound.call.M, bound.call.Dv}, options);
  out.lse = at::empty({bound.call.B, bound.call.H, bound.call.M}, options);
  out.pairs = at::empty({bound.call.B, bound.call.H, bound.call.M, 0}, options);
  bound.call.o = array_of<T>(out.o);
  bound.call.lse = out.lse.mutable_data_ptr<T>();
  kernels::attention_forward(bound.call);
  return out;
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

template <class T>
StripeGradient backward(const Call& source, const at::Tensor& o, const at::Tensor& lse, const at::Tensor& grad_o,
                        const at::Tensor& grad_lse, const Wanted& wanted) {
  Bound<T> bound(source);
  const auto compute = source.compute();
  const auto options = bound.q.options();
  const at::Tensor output = o.to(compute), statistic = lse.to(compute).contiguous(), cotangent = grad_o.to(compute);
  const at::Tensor grad_statistic = grad_lse.defined() ? grad_lse.to(compute).contiguous() : at::Tensor();
  StripeGradient out;
  kernels::AttentionGradient<T> gradient;
  gradient.grad_o = array_of<const T>(cotangent);
  gradient.o = array_of<const T>(output);
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
  kernels::attention_backward(bound.call, gradient);
  return out;
}

}  // namespace

std::string fused_refusal(const Call& call) {
  if (!call.q.is_cpu()) return "device " + call.q.device().str();
  return kernels::refusal(*call.spec);
}

Stripe blocked_forward(const Call& call) {
  return call.compute() == at::kDouble ? forward<double>(call) : forward<float>(call);
}

StripeGradient blocked_backward(const Call& call, const at::Tensor& o, const at::Tensor& lse, const at::Tensor& grad_o,
                                const at::Tensor& grad_lse, const Wanted& wanted) {
  return call.compute() == at::kDouble ? backward<double>(call, o, lse, grad_o, grad_lse, wanted)
                                       : backward<float>(call, o, lse, grad_o, grad_lse, wanted);
}

}  // namespace regard::ops
