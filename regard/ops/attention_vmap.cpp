// vmap of the attention ops: one call a slice, stacked. Written over the boxed stack, so that it serves ops with lists
// of tensors, which torch's own fallbacks refuse. Two kinds: torch.func.vmap, and the older one behind batched
// gradients (torch.autograd.grad with is_grads_batched).
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>
#include <torch/library.h>

// After functorch's headers, whose unqualified calls would find this one's functions too.
#include <ATen/LegacyBatchedTensorImpl.h>

#include <algorithm>
#include <functional>

namespace regard::ops {
namespace {

using torch::jit::Stack;

/// The batch dimension being mapped.
struct Axis {
  int64_t size = -1;                                   ///< -1: no tensor has it
  std::function<at::Tensor(const at::Tensor&)> front;  ///< the tensor with that dimension in front, undefined
                                                       ///< when it does not have it
  std::function<at::Tensor(const at::Tensor&)> wrap;   ///< the reverse
};

/// Calls visit(tensor) for every tensor in an argument and rebuilds it from what visit returns.
c10::IValue map_tensors(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& visit) {
  if (value.isTensor()) return visit(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& t : value.toTensorVector()) list.push_back(visit(t));
  return list;
}

std::vector<c10::IValue> pop_arguments(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  const std::vector<c10::IValue> arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  torch::jit::drop(*stack, count);
  return arguments;
}

void call_by_slices(const c10::OperatorHandle& op, Stack* stack, const std::vector<c10::IValue>& arguments,
                    const Axis& axis) {
  const size_t returns = op.schema().returns().size();
  // An empty vmap still needs shapes: one call on zeros gives them.
  const int64_t calls = std::max<int64_t>(axis.size, 1);
  std::vector<std::vector<std::vector<at::Tensor>>> results(returns);  // [return][tensor in a list][slice]
  std::vector<bool> is_list(returns);
  for (int64_t i = 0; i < calls; ++i) {
    Stack one;
    for (const auto& argument : arguments)
      one.push_back(map_tensors(argument, [&](const at::Tensor& t) {
        const at::Tensor all = t.defined() ? axis.front(t) : at::Tensor();
        if (!all.defined()) return t;
        return axis.size == 0 ? at::zeros_symint(all.sym_sizes().slice(1), all.options()) : all.select(0, i);
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
      const at::Tensor stacked = at::stack(slices);
      list.push_back(axis.size < 0 ? stacked.squeeze(0) : axis.wrap(stacked.narrow(0, 0, axis.size)));
    }
    stack->push_back(is_list[r] ? c10::IValue(list) : c10::IValue(list.get(0)));
  }
}

void vmap_by_slices(const c10::OperatorHandle& op, Stack* stack) {
  const int64_t level = at::functorch::maybeCurrentDynamicLayer()->layerId();
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::FuncTorchBatched);
  const auto arguments = pop_arguments(op, stack);
  Axis axis;
  axis.front = [level](const at::Tensor& t) {
    const auto* batched = at::functorch::maybeGetBatchedImpl(t);
    return batched != nullptr && batched->level() == level ? batched->value().movedim(batched->bdim(), 0)
                                                           : at::Tensor();
  };
  axis.wrap = [level](const at::Tensor& t) { return at::functorch::makeBatched(t, 0, level); };
  for (const auto& argument : arguments)
    map_tensors(argument, [&](const at::Tensor& t) {
      if (const at::Tensor all = t.defined() ? axis.front(t) : at::Tensor(); all.defined()) axis.size = all.size(0);
      return t;
    });
  call_by_slices(op, stack, arguments, axis);
}

void legacy_vmap_by_slices(const c10::OperatorHandle& op, Stack* stack) {
  const auto arguments = pop_arguments(op, stack);
  int64_t level = -1, size = -1;  // the innermost level among the arguments
  const auto level_of = [](const at::Tensor& t) -> int64_t {
    const auto* batched = t.defined() ? at::maybeGetBatchedImpl(t) : nullptr;
    return batched == nullptr ? -1 : batched->bdims().back().level();
  };
  for (const auto& argument : arguments)
    map_tensors(argument, [&](const at::Tensor& t) {
      if (level_of(t) > level) {
        level = level_of(t);
        const auto* batched = at::maybeGetBatchedImpl(t);
        size = batched->value().size(batched->bdims().back().dim());
      }
      return t;
    });
  Axis axis;
  axis.size = size;
  axis.front = [&](const at::Tensor& t) {
    return level_of(t) == level ? at::_remove_batch_dim(t, level, size, 0) : at::Tensor();
  };
  axis.wrap = [level](const at::Tensor& t) { return at::_add_batch_dim(t, 0, level); };
  call_by_slices(op, stack, arguments, axis);
}

}  // namespace

TORCH_LIBRARY_IMPL(regard, FuncTorchBatched, m) {
  m.impl("attend", torch::CppFunction::makeFromBoxedFunction<&vmap_by_slices>());
  m.impl("attention_backward", torch::CppFunction::makeFromBoxedFunction<&vmap_by_slices>());
}
TORCH_LIBRARY_IMPL(regard, Batched, m) {
  m.impl("attend", torch::CppFunction::makeFromBoxedFunction<&legacy_vmap_by_slices>());
  m.impl("attention_backward", torch::CppFunction::makeFromBoxedFunction<&legacy_vmap_by_slices>());
}

}  // namespace regard::ops
