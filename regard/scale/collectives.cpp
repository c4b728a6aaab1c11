#include "regard/scale/collectives.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <functional>

#include "regard/base/error.h"
#include "regard/ops/node.h"
#include "regard/scale/parcel.h"
#include "regard/scale/ring_call.h"

namespace regard::sharding {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;
constexpr int kReduceTag = 3;
using Pull = std::function<at::Tensor(const at::Tensor& grad)>;

struct CollectiveBackward final : Node {
  Pull pull;
  std::shared_ptr<Transport> transport;
  std::string name() const override { return "CollectiveBackward"; }
  variable_list apply(variable_list&& grads) override {
    try {
      return {pull(grads[0])};
    } catch (const std::exception& error) {
      transport->poison("rank " + std::to_string(transport->rank()) + " failed: " + error.what());
      throw;
    }
  }
};

at::Tensor recorded(const Collectives& group, const at::Tensor& input, at::Tensor result, const Pull& pull) {
  if (!at::GradMode::is_enabled() || !input.requires_grad()) return result;
  auto node = ops::make_node<CollectiveBackward>();
  node->set_next_edges(ops::edges_of({input}));
  node->pull = pull;
  node->transport = group.transport;
  torch::autograd::set_history(result, node);
  return result;
}

void first_only() { require(!at::GradMode::is_enabled(), "ring", "first derivatives", "create_graph"); }

at::Tensor sum_of(const std::vector<at::Tensor>& parts) {
  at::Tensor sum = parts[0];
  for (size_t i = 1; i < parts.size(); ++i) sum = at::add(sum, parts[i]);
  return sum;
}

/// The local indices of the ranks one after the other, as positions in the whole: whole[order] = cat(parts).
at::Tensor order_of(int64_t tokens, int64_t ranks, Layout layout) {
  std::vector<at::Tensor> parts;
  for (int64_t rank = 0; rank < ranks; ++rank) parts.push_back(token_of_rank(tokens, ranks, layout, rank));
  return at::cat(parts);
}

}  // namespace

std::vector<at::Tensor> Collectives::all(const at::Tensor& own, std::atomic<int64_t>& bytes) const {
  const at::NoGradGuard off;
  bytes += static_cast<int64_t>(own.nbytes()) * (transport->size() - 1);
  return transport->all_gather(own.detach().contiguous());
}

at::Tensor Collectives::total(const at::Tensor& part) const {
  at::Tensor sum;
  {
    const at::NoGradGuard off;
    sum = sum_of(all(part, traffic->collective));
  }
  const Collectives group = *this;
  return recorded(group, part, sum, [group](const at::Tensor& grad) { return group.total(grad); });
}

at::Tensor Collectives::greatest(const at::Tensor& part) const {
  at::Tensor top, owner;
  {
    const at::NoGradGuard off;
    const auto parts = all(part, traffic->collective);
    const at::Tensor stacked = at::stack(parts);
    top = std::get<0>(stacked.max(0));
    // NaN is the maximum of what contains it, and belongs to whoever brought it.
    const at::Tensor has = at::logical_or(stacked.eq(top), at::isnan(stacked));
    owner = has.to(at::kInt).argmax(0).eq(transport->rank());
  }
  const Collectives group = *this;
  return recorded(group, part, top, [group, owner](const at::Tensor& grad) {
    first_only();
    const at::NoGradGuard off;
    return sum_of(group.all(grad, group.traffic->collective)).masked_fill(owner.logical_not(), 0);
  });
}

at::Tensor Collectives::gather(const at::Tensor& part, int64_t dim) const {
  const int64_t along = dim < 0 ? dim + part.dim() : dim;
  require(along >= 0 && along < part.dim(), "gather", "a dimension of the part", std::to_string(dim));
  const auto counts = counts_of(*transport, layout, part.size(along), "tokens", *traffic);
  int64_t tokens = 0, longest = 0;
  for (const int64_t count : counts) {
    tokens += count;
    longest = std::max(longest, count);
  }
  const at::Tensor order = order_of(tokens, transport->size(), layout).to(part.device());
  at::Tensor whole;
  {
    const at::NoGradGuard off;
    std::vector<int64_t> sizes = part.sizes().vec();
    sizes[static_cast<size_t>(along)] = longest;
    const at::Tensor padded = at::zeros(sizes, part.options().requires_grad(std::nullopt));
    padded.narrow(along, 0, part.size(along)).copy_(part.detach());
    const auto parts = all(padded, traffic->collective);
    std::vector<at::Tensor> pieces;
    for (size_t rank = 0; rank < parts.size(); ++rank) pieces.push_back(parts[rank].narrow(along, 0, counts[rank]));
    whole = at::cat(pieces, along).index_select(along, order.argsort());
  }
  const Collectives group = *this;
  return recorded(group, part, whole, [group, along, tokens, longest](const at::Tensor& grad) {
    first_only();
    const at::NoGradGuard off;
    const int64_t ranks = group.transport->size();
    std::vector<at::Tensor> parts;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const at::Tensor theirs = token_of_rank(tokens, ranks, group.layout, rank).to(grad.device());
      std::vector<int64_t> sizes = grad.sizes().vec();
      sizes[static_cast<size_t>(along)] = longest;
      parts.push_back(at::zeros(sizes, grad.options()));
      parts.back().narrow(along, 0, theirs.size(0)).copy_(grad.index_select(along, theirs));
    }
    return group.reduce_scatter(parts, group.traffic->collective)
        .narrow(along, 0, count_of_rank(tokens, ranks, group.layout, group.transport->rank()));
  });
}

at::Tensor Collectives::stack(const at::Tensor& part) const {
  at::Tensor whole;
  {
    const at::NoGradGuard off;
    whole = at::stack(all(part, traffic->forward));
  }
  const Collectives group = *this;
  return recorded(group, part, whole, [group](const at::Tensor& grad) {
    first_only();
    const at::NoGradGuard off;
    return group.reduce_scatter(grad.unbind(0), group.traffic->backward);
  });
}

namespace {

struct DependsBackward final : Node {
  at::TensorOptions options;
  std::vector<int64_t> sizes;
  std::string name() const override { return "DependsBackward"; }
  variable_list apply(variable_list&& grads) override { return {grads[0], at::zeros(sizes, options)}; }
};

}  // namespace

at::Tensor Collectives::depends(const at::Tensor& result, const at::Tensor& on) const {
  if (!at::GradMode::is_enabled() || !on.requires_grad()) return result;
  at::Tensor out = result.detach();
  auto node = ops::make_node<DependsBackward>();
  node->set_next_edges(ops::edges_of({result, on}));
  node->options = on.options().requires_grad(std::nullopt);
  node->sizes = on.sizes().vec();
  torch::autograd::set_history(out, node);
  return out;
}

at::Tensor Collectives::reduce_scatter(const std::vector<at::Tensor>& parts, std::atomic<int64_t>& bytes) const {
  const at::NoGradGuard off;
  const int64_t ranks = transport->size(), rank = transport->rank();
  // The sum for rank d starts on d + 1 and goes round: at hop t this rank adds its part for rank - 1 - t.
  const auto part = [&](int64_t hop) { return parts[static_cast<size_t>((rank + 2 * ranks - 1 - hop) % ranks)]; };
  at::Tensor sum = part(0).contiguous();
  std::atomic<int64_t> integers{0};
  for (int64_t hop = 1; hop < ranks; ++hop) {
    Parcel parcel(*transport, kReduceTag, {sum}, {sum.sizes().vec()}, bytes, integers);
    sum = at::add(parcel.receive()[0], part(hop));
  }
  return sum;
}

}  // namespace regard::sharding
