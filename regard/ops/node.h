#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <utility>
#include <vector>

/// What hand-written autograd nodes share. Nodes are held by c10::intrusive_ptr in newer torch and by std::shared_ptr
/// in older: the type is taken from Edge.
namespace regard::ops {

using NodePointer = decltype(torch::autograd::Edge::function);

template <class N, class Pointer = NodePointer>
auto make_node() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    // deleteNode (found by the argument's namespace) frees long graphs without recursion.
    return std::shared_ptr<N>(new N(), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>();
  }
}

/// Saved tensors of a node, some of them undefined.
class Saved {
 public:
  void save(const std::vector<at::Tensor>& inputs) {
    for (const auto& t : inputs) variables_.emplace_back(t, /*is_output=*/false);
  }
  void save_output(const at::Tensor& t) { variables_.emplace_back(t, /*is_output=*/true); }
  std::vector<at::Tensor> unpack(const NodePointer& node) const {
    std::vector<at::Tensor> out;
    out.reserve(variables_.size());
    for (const auto& v : variables_) out.push_back(v.unpack(node));
    return out;
  }
  void release() {
    for (auto& v : variables_) v.reset_data();
  }

 private:
  std::vector<torch::autograd::SavedVariable> variables_;
};

bool any_requires_grad(const std::vector<at::Tensor>& tensors);
bool any_forward_grad(const std::vector<at::Tensor>& tensors);

/// One edge a tensor, an empty one for undefined tensors and for those that need no gradient.
torch::autograd::edge_list edges_of(const std::vector<at::Tensor>& tensors);

}  // namespace regard::ops
