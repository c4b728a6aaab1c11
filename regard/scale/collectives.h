#pragma once

#include <memory>

#include "regard/scale/layout.h"
#include "regard/scale/traffic.h"
#include "regard/scale/transport.h"

namespace regard::sharding {

/// What spans the sequence, differentiable. The objective is the sum of what every rank makes of its results: a result
/// that all ranks hold alike counts once a rank. All ranks must differentiate it if one does.
struct Collectives {
  std::shared_ptr<Transport> transport;
  Layout layout = Layout::contiguous;
  Traffic* traffic = nullptr;

  /// Sum in the order of ranks, the same bits on all. Differentiable to any order.
  at::Tensor total(const at::Tensor& part) const;
  /// Elementwise maximum; its gradient goes to the first rank that has it.
  at::Tensor greatest(const at::Tensor& part) const;
  /// All tokens' entries along `dim`, in their global order.
  at::Tensor gather(const at::Tensor& part, int64_t dim) const;
  /// (W, ...): every rank's part, all of one shape. Differentiable where every rank's results depend on it.
  at::Tensor stack(const at::Tensor& part) const;
  /// `result`, which now depends on `on` in the backward, with a gradient of zeros: a rank that needs nothing of a
  /// collective still takes part in its backward.
  at::Tensor depends(const at::Tensor& result, const at::Tensor& on) const;

  /// Every rank's numbers of equal shape, not differentiable.
  std::vector<at::Tensor> all(const at::Tensor& own, std::atomic<int64_t>& bytes) const;
  /// Sum over the ranks of what each has for this one: parts[r] goes to rank r. Not differentiable.
  at::Tensor reduce_scatter(const std::vector<at::Tensor>& parts, std::atomic<int64_t>& bytes) const;
};

}  // namespace regard::sharding
