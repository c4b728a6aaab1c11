// Groups of processes: c10d's, made by torch.distributed and found by name.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "regard/base/error.h"
#include "regard/scale/transport.h"

namespace regard::sharding {
namespace {

using Group = c10::intrusive_ptr<c10d::ProcessGroup>;
using Work = c10::intrusive_ptr<c10d::Work>;

class Works final : public Pending {
 public:
  Works(std::vector<Work> works, at::Tensor sent, at::Tensor received)
      : works_(std::move(works)), sent_(std::move(sent)), received_(std::move(received)) {}
  void wait() override {
    for (const auto& work : works_)
      if (work) work->wait();
    works_.clear();
  }

 private:
  std::vector<Work> works_;
  at::Tensor sent_, received_;
};

class ProcessMember final : public Transport {
 public:
  ProcessMember(std::string name, Group group) : name_(std::move(name)), group_(std::move(group)) {}
  std::string name() const override { return name_; }
  int64_t rank() const override { return group_->getRank(); }
  int64_t size() const override { return group_->getSize(); }

  std::unique_ptr<Pending> shift(at::Tensor sent, at::Tensor received, int tag) override {
    const at::NoGradGuard off;
    std::vector<at::Tensor> out = {sent}, in = {received};
    std::vector<Work> works;
    // NCCL runs what one stream is given in order: both halves must be one batch, or two ranks wait for each other.
    const bool together = sent.is_cuda();
    if (together) group_->startCoalescing(sent.device().type());
    if (sent.numel() > 0) works.push_back(group_->send(out, static_cast<int>(next()), tag));
    if (received.numel() > 0) works.push_back(group_->recv(in, static_cast<int>(previous()), tag));
    if (together) works = {group_->endCoalescing(sent.device().type())};
    return std::make_unique<Works>(std::move(works), std::move(sent), std::move(received));
  }

  std::vector<at::Tensor> all_gather(const at::Tensor& own) override {
    const at::NoGradGuard off;
    std::vector<at::Tensor> in = {own.detach().contiguous()};
    std::vector<std::vector<at::Tensor>> out(1);
    for (int64_t other = 0; other < size(); ++other) out[0].push_back(at::empty_like(in[0]));
    if (own.numel() > 0) group_->allgather(out, in)->wait();
    return out[0];
  }

 private:
  std::string name_;
  Group group_;
};

}  // namespace

std::shared_ptr<Transport> process_transport(const std::string& name) {
  Group group;
  try {
    group = c10d::resolve_process_group(name);
  } catch (const c10::Error&) {
    fail("executor", "the name of a process group of torch.distributed (group.group_name)", "'" + name + "'");
  }
  return std::make_shared<ProcessMember>(name, std::move(group));
}

}  // namespace regard::sharding
