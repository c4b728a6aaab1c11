// vmap of the attention ops: one call a slice, stacked. Written over the boxed stack, so that it serves ops with lists of
// tensors, which torch's own fallback refuses.
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/TensorWrapper.h>
#include <torch/library.h>

#include "regard/base/error.h"

namespace regard::ops {
namespace {

using torch::jit::Stack;

/// A tensor argument with its batch dimension at this level, -1 when it has none.
struct Part {
  at::Tensor value;
  int64_t dim = -1;
  at::Tensor slice(int64_t i) const { return dim >= 0 ? value.select(dim, i) : value; }
};

Part unwrap(const at::Tensor& t, int64_t level) {
  if (!t.defined()) return {t, -1};
  const auto* batched = at::functorch::maybeGetBatchedImpl(t);
  if (batched == nullptr || batched->level() != level) return {t, -1};
  return {batched->value(), batched->bdim()};
}

/// Calls visit(tensor) for every tensor in an argument and rebuilds it from what visit returns.
c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& visit) {
  if (value.isTensor()) return visit(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& t : value.toTensorVector()) list.push_back(visit(t));
  return list;
}

int64_t batch_size(const std::vector<c10::IValue>& arguments, int64_t level) {
  int64_t size = -1;
  for (const auto& argument : arguments)
    map_tensors(argument, [&](const at::Tensor& t) {
      const Part part = unwrap(t, level);
      if (part.dim >= 0) size = part.value.size(part.dim);
      return t;
    });
  return size;
}

void vmap_by_slices(const c10::OperatorHandle& op, Stack* stack) {
  const auto layer = at::functorch::maybeCurrentDynamicLayer();
  const int64_t level = layer->layerId();
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::FuncTorchBatched);
  const size_t count = op.schema().arguments().size(), returns = op.schema().returns().size();
  const std::vector<c10::IValue> arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  torch::jit::drop(*stack, count);
  const int64_t size = batch_size(arguments, level);
  // An empty vmap still needs shapes: one call on zeros gives them.
  const int64_t calls = std::max<int64_t>(size, 1);
  std::vector<std::vector<std::vector<at::Tensor>>> results(returns);   // [return][tensor in a list][slice]
  std::vector<bool> is_list(returns);
  for (int64_t i = 0; i < calls; ++i) {
    Stack one;
    for (const auto& argument : arguments)
      one.push_back(map_tensors(argument, [&](const at::Tensor& t) {
        const Part part = unwrap(t, level);
        if (size == 0 && part.dim >= 0) {
          auto shape = part.value.sizes().vec();
          shape.erase(shape.begin() + part.dim);
          return at::zeros(shape, part.value.options());
        }
        return part.slice(i);
      }));
    op.callBoxed(one);
    for (size_t r = 0; r < returns; ++r) {
      is_list[r] = one[r].isTensorList();
      const auto tensors = is_list[r] ? one[r].toTensorVector() : std::vector<at::Tensor>{one[r].toTensor()};
      results[r].resize(tensors.size());
      for (size_t t = 0; t < tensors.size(); ++t) results[r][t].push_back(tensors[t]);
    }
  }
  for (size_t r = 0; r < returns; ++r) {
    c10::List<at::Tensor> list;
    for (const auto& slices : results[r]) {
      const at::Tensor stacked = at::stack(slices).narrow(0, 0, size < 0 ? 1 : size);
      list.push_back(size < 0 ? stacked.squeeze(0) : at::functorch::makeBatched(stacked, 0, level));
    }
    stack->push_back(is_list[r] ? c10::IValue(list) : c10::IValue(list.get(0)));
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(regard, FuncTorchBatched, m) {
  m.impl("attend", torch::CppFunction::makeFromBoxedFunction<&vmap_by_slices>());
  m.impl("attention_backward", torch::CppFunction::makeFromBoxedFunction<&vmap_by_slices>());
}

}  // namespace regard::ops
