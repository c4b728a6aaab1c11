#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "regard/scale/traffic.h"
#include "regard/scale/transport.h"

namespace regard::sharding {

/// Several tensors as one message to the next rank of a ring, and the message that the previous rank sends meanwhile.
class Parcel {
 public:
  /// Starts both. `shapes` are those of the arriving tensors, of the dtypes of `sent`. Floating bytes are added to
  /// `payload`, others to `metadata`.
  Parcel(Transport& transport, int tag, const std::vector<at::Tensor>& sent,
         const std::vector<std::vector<int64_t>>& shapes, std::atomic<int64_t>& payload,
         std::atomic<int64_t>& metadata);

  /// Waits and returns what arrived.
  std::vector<at::Tensor> receive();

 private:
  std::vector<at::Tensor> arriving_;
  std::unique_ptr<Pending> pending_;
};

}  // namespace regard::sharding
