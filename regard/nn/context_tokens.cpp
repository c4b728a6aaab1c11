// Where the tokens of a call lie: positions, padding, packed segments, shards.

#include "regard/base/error.h"
#include "regard/nn/context.h"
#include "regard/nn/shapes.h"
#include "regard/ops/executor.h"

namespace regard {
namespace {

at::Tensor range(const c10::SymInt& begin, const c10::SymInt& end, const at::Tensor& like) {
  return at::arange(at::Scalar(begin), at::Scalar(end), like.options().dtype(at::kLong).requires_grad(std::nullopt));
}

}  // namespace

at::Tensor Context::cu_seqlens() const {
  const at::Tensor bounds = input("cu_seqlens");
  packed_read_ = packed_read_ || bounds.defined();
  return bounds.defined() ? bounds.to(at::kLong) : bounds;
}

at::Tensor Context::segments(const at::Tensor& x) const {
  const at::Tensor bounds = cu_seqlens();
  if (!bounds.defined()) return {};
  // The segment of token t is the number of ends that are <= t.
  return at::bucketize(range(0, x.sym_size(1), x), bounds.slice(0, 1).contiguous(), /*out_int32=*/false,
                       /*right=*/true);
}

at::Tensor Context::positions(const at::Tensor& x) const {
  const at::Tensor given = input("positions");
  if (given.defined()) return given;
  const c10::SymInt count = x.sym_size(1);
  if (executor && executor->sharded()) return executor->positions(count, x.options());
  if (input("cu_seqlens").defined()) {
    const at::Tensor segment = segments(x);
    return range(0, count, x) - cu_seqlens().index_select(0, segment);
  }
  const c10::SymInt before = decoding_ ? past() : c10::SymInt(0);
  return range(before, before + count, x);
}

at::Tensor Context::padding(const at::Tensor& x, const at::Tensor& lengths) const {
  if (!lengths.defined()) return {};
  if (!executor || !executor->sharded()) return regard::padding(lengths, x.sym_size(1));
  return executor->positions(x.sym_size(1), x.options()).unsqueeze(0) >= lengths.unsqueeze(1);
}

at::Tensor Context::indices(const at::Tensor& x) const {
  if (executor && executor->sharded()) return executor->positions(x.sym_size(1), x.options());
  return range(0, x.sym_size(1), x);
}

at::Tensor Context::behind_prefix(const at::Tensor& x) const {
  if (prefix == 0) return x;
  if (!executor || !executor->sharded()) return x.slice(1, prefix);
  return x.slice(1, indices(x).lt(prefix).sum().item<int64_t>());  // a shard's tokens ascend
}

at::Tensor Context::token(const at::Tensor& x, int64_t place) {
  if (!executor || !executor->sharded()) return x.select(1, place);
  return total(x.index_select(1, indices(x).eq(place).nonzero().squeeze(1)).sum(1));
}

bool Context::sharded() const { return executor && executor->sharded(); }

c10::SymInt Context::tokens(const at::Tensor& x) const {
  return executor && executor->sharded() ? executor->tokens(x.sym_size(1)) : x.sym_size(1);
}

at::Tensor Context::total(const at::Tensor& part) {
  if (!executor) return part;
  ++executor->asked;
  return executor->total(part);
}

at::Tensor Context::greatest(const at::Tensor& part) {
  if (!executor) return part;
  ++executor->asked;
  return executor->greatest(part);
}

at::Tensor Context::gather(const at::Tensor& part, int64_t dim) {
  if (!executor) return part;
  ++executor->asked;
  return executor->gather(part, dim);
}

void Context::whole_only(const char* id, const std::string& why) const {
  const auto refuse = [&](const char* expected) {
    fail(id, std::string(expected) + ", because of " + why, "another call");
  };
  if (executor && executor->sharded()) refuse("all tokens on one device");
  if (input("cu_seqlens").defined()) refuse("sequences that are not packed");
  if (decoding_) refuse("no cache");
}

}  // namespace regard
