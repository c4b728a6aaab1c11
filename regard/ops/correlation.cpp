#include "regard/ops/correlation.h"

#include <torch/csrc/autograd/custom_function.h>

#include "regard/ops/call.h"
#include "regard/ops/node.h"

namespace regard::ops {
namespace {

using kernels::Correlation;
using kernels::Pads;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Correlation shape_of(const at::Tensor& x, int64_t height, int64_t width, const Pads& pads) {
  return {x.size(0) * x.size(1), x.size(1), x.size(2), x.size(3), height, width, pads};
}

/// Pads of the correlation that carries gradients back: with the flipped kernel.
Pads transposed(const Pads& pads, int64_t height, int64_t width) {
  return {height - 1 - pads.top, height - 1 - pads.bottom, width - 1 - pads.left, width - 1 - pads.right};
}

at::Tensor run(const at::Tensor& x, const at::Tensor& kernel, const Pads& pads) {
  const at::Tensor in = x.contiguous(), weights = kernel.contiguous();
  const Correlation shape = shape_of(in, weights.size(1), weights.size(2), pads);
  const at::Tensor out = at::empty({in.size(0), in.size(1), shape.out_rows(), shape.out_columns()}, in.options());
  if (in.scalar_type() == at::kFloat)
    kernels::correlate(shape, in.const_data_ptr<float>(), weights.const_data_ptr<float>(), out.data_ptr<float>());
  else
    kernels::correlate(shape, in.const_data_ptr<double>(), weights.const_data_ptr<double>(), out.data_ptr<double>());
  return out;
}

at::Tensor run_kernel_gradient(const at::Tensor& x, const at::Tensor& out_gradient, int64_t height, int64_t width,
                               const Pads& pads) {
  const at::Tensor in = x.contiguous(), gradient = out_gradient.contiguous();
  const Correlation shape = shape_of(in, height, width, pads);
  const at::Tensor out = at::empty({in.size(1), height, width}, in.options());
  if (in.scalar_type() == at::kFloat)
    kernels::correlate_kernel_gradient(shape, in.const_data_ptr<float>(), gradient.const_data_ptr<float>(),
                                       out.data_ptr<float>());
  else
    kernels::correlate_kernel_gradient(shape, in.const_data_ptr<double>(), gradient.const_data_ptr<double>(),
                                       out.data_ptr<double>());
  return out;
}

/// The same by ATen: differentiable, traceable, on every device.
at::Tensor composite(const at::Tensor& x, const at::Tensor& kernel, const Pads& pads) {
  const at::Tensor padded = at::constant_pad_nd(x, {pads.left, pads.right, pads.top, pads.bottom});
  return at::conv2d(padded, kernel.unsqueeze(1), {}, at::IntArrayRef{1, 1}, at::IntArrayRef{0, 0},
                    at::IntArrayRef{1, 1}, kernel.size(0));
}

at::Tensor composite_kernel_gradient(const at::Tensor& x, const at::Tensor& gradient, int64_t height, int64_t width,
                                     const Pads& pads) {
  const at::Tensor padded = at::constant_pad_nd(x, {pads.left, pads.right, pads.top, pads.bottom});
  std::vector<at::Tensor> entries;
  const c10::SymInt rows = gradient.sym_size(2), columns = gradient.sym_size(3);
  for (int64_t a = 0; a < height; ++a)
    for (int64_t b = 0; b < width; ++b)
      entries.push_back(
          (padded.slice_symint(2, a, rows + a).slice_symint(3, b, columns + b) * gradient).sum({0, 2, 3}));
  return at::stack(entries, -1).unflatten(-1, {height, width});
}

bool has_kernel(const at::Tensor& a, const at::Tensor& b) {
  const auto fits = [](const at::Tensor& t) { return concrete(t) && t.is_cpu() && !t.is_sparse(); };
  const at::ScalarType type = a.scalar_type();
  return fits(a) && fits(b) && type == b.scalar_type() && (type == at::kFloat || type == at::kDouble) &&
         !any_forward_grad({a, b});
}

at::Tensor kernel_gradient(const at::Tensor& x, const at::Tensor& gradient, int64_t height, int64_t width,
                           const Pads& pads);

at::IValue packed(const Pads& pads) { return std::vector<int64_t>{pads.top, pads.bottom, pads.left, pads.right}; }
Pads unpacked(const at::IValue& value) {
  const auto list = value.toIntVector();
  return {list[0], list[1], list[2], list[3]};
}

struct Correlate : torch::autograd::Function<Correlate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& kernel, const Pads& pads) {
    context->save_for_backward({x, kernel});
    context->saved_data["pads"] = packed(pads);
    return run(x, kernel, pads);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &kernel = saved[1], &g = gradients[0];
    const Pads pads = unpacked(context->saved_data["pads"]);
    const int64_t height = kernel.size(1), width = kernel.size(2);
    variable_list out(3);
    if (!g.defined()) return out;
    if (context->needs_input_grad(0)) out[0] = correlate(g, kernel.flip({1, 2}), transposed(pads, height, width));
    if (context->needs_input_grad(1)) out[1] = kernel_gradient(x, g, height, width, pads);
    return out;
  }
};

/// The gradient of the kernel is linear in x and in the gradient of the result: its derivatives are correlations.
struct KernelGradient : torch::autograd::Function<KernelGradient> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& gradient, int64_t height,
                            int64_t width, const Pads& pads) {
    context->save_for_backward({x, gradient});
    context->saved_data["pads"] = packed(pads);
    return run_kernel_gradient(x, gradient, height, width, pads);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const Pads pads = unpacked(context->saved_data["pads"]);
    const at::Tensor& g = gradients[0];  // (H, height, width)
    variable_list out(5);
    if (!g.defined()) return out;
    if (context->needs_input_grad(0))
      out[0] = correlate(saved[1], g.flip({1, 2}), transposed(pads, g.size(1), g.size(2)));
    if (context->needs_input_grad(1)) out[1] = correlate(saved[0], g, pads);
    return out;
  }
};

at::Tensor kernel_gradient(const at::Tensor& x, const at::Tensor& gradient, int64_t height, int64_t width,
                           const Pads& pads) {
  if (!has_kernel(x, gradient)) return composite_kernel_gradient(x, gradient, height, width, pads);
  return KernelGradient::apply(x, gradient, height, width, pads);
}

}  // namespace

at::Tensor correlate(const at::Tensor& x, const at::Tensor& kernel, const Pads& pads) {
  return has_kernel(x, kernel) ? Correlate::apply(x, kernel, pads) : composite(x, kernel, pads);
}

}  // namespace regard::ops
