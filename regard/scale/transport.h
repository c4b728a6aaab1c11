#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

/// How the members of a group reach each other.
namespace regard::sharding {

/// A transfer under way. What is sent and received stays alive until it is waited for.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

/// One member's end of a group. All members make the same calls in the same order.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual std::string name() const = 0;
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;

  /// Sends `sent` to the next rank and fills `received` from the previous one, both contiguous bytes. Neither is
  /// touched before the wait. Transfers with different tags may be under way together.
  virtual std::unique_ptr<Pending> shift(at::Tensor sent, at::Tensor received, int tag) = 0;

  /// Every member's tensor, in the order of ranks; all of one shape and dtype.
  virtual std::vector<at::Tensor> all_gather(const at::Tensor& own) = 0;

  /// Tells the others that this member failed, where they can be told: their waits throw.
  virtual void poison(const std::string& reason) { (void)reason; }

  int64_t next() const { return (rank() + 1) % size(); }
  int64_t previous() const { return (rank() + size() - 1) % size(); }
};

/// The group of this name: "threads/NAME/RANK", a member of an in-process group (see thread_group.h), or the name of a
/// process group that torch.distributed made in this process (`group.group_name`; Gloo on CPU, NCCL on CUDA).
std::shared_ptr<Transport> find_transport(const std::string& name);

std::shared_ptr<Transport> thread_transport(const std::string& name_and_rank);
std::shared_ptr<Transport> process_transport(const std::string& name);

}  // namespace regard::sharding
