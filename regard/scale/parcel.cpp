#include "regard/scale/parcel.h"

#include <ATen/core/grad_mode.h>

namespace regard::sharding {
namespace {

constexpr int64_t kAlignment = 16;  // of every tensor in a message, so that it can be read in place

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

/// Views of a buffer of bytes as tensors of these shapes and the dtypes of `like`; allocates the buffer.
std::vector<at::Tensor> laid_out(const std::vector<at::Tensor>& like, const std::vector<std::vector<int64_t>>& shapes,
                                 at::Tensor& buffer) {
  int64_t bytes = 0;
  for (size_t i = 0; i < like.size(); ++i)
    bytes += aligned(count_of(shapes[i]) * static_cast<int64_t>(like[i].element_size()));
  buffer = at::empty({bytes}, like[0].options().dtype(at::kByte).requires_grad(std::nullopt));
  std::vector<at::Tensor> views;
  int64_t begin = 0;
  for (size_t i = 0; i < like.size(); ++i) {
    const int64_t own = count_of(shapes[i]) * static_cast<int64_t>(like[i].element_size());
    views.push_back(own == 0 ? at::empty(shapes[i], like[i].options().requires_grad(std::nullopt))
                             : buffer.narrow(0, begin, own).view(like[i].scalar_type()).view(shapes[i]));
    begin += aligned(own);
  }
  return views;
}

}  // namespace

Parcel::Parcel(Transport& transport, int tag, const std::vector<at::Tensor>& sent,
               const std::vector<std::vector<int64_t>>& shapes, std::atomic<int64_t>& payload,
               std::atomic<int64_t>& metadata) {
  const at::NoGradGuard off;
  std::vector<std::vector<int64_t>> own;
  for (const at::Tensor& t : sent) {
    own.push_back(t.sizes().vec());
    (t.is_floating_point() ? payload : metadata) += static_cast<int64_t>(t.nbytes());
  }
  at::Tensor outgoing, incoming;
  const auto places = laid_out(sent, own, outgoing);
  for (size_t i = 0; i < sent.size(); ++i) places[i].copy_(sent[i].detach());
  arriving_ = laid_out(sent, shapes, incoming);
  pending_ = transport.shift(outgoing, incoming, tag);
}

std::vector<at::Tensor> Parcel::receive() {
  pending_->wait();
  return std::move(arriving_);
}

}  // namespace regard::sharding
