#include "regard/scale/ring_linear.h"

#include <functional>
#include <optional>

#include "regard/base/error.h"
#include "regard/scale/ring_call.h"

namespace regard::sharding {
namespace {

/// All summaries of the group. They travel as one vector: one collective has one place in the backward of every rank.
std::vector<LinearSpan> gathered(const at::Tensor& all, const LinearSpan& own) {
  std::vector<LinearSpan> spans;
  for (int64_t rank = 0; rank < all.size(0); ++rank) {
    std::vector<at::Tensor> tensors;
    int64_t begin = 0;
    for (const at::Tensor& like : tensors_of(own)) {
      tensors.push_back(all.select(0, rank).narrow(0, begin, like.numel()).view(like.sizes()));
      begin += like.numel();
    }
    spans.push_back(with_tensors(own, tensors));
  }
  return spans;
}

at::Tensor flattened(const LinearSpan& span) {
  std::vector<at::Tensor> pieces;
  for (const at::Tensor& t : tensors_of(span)) pieces.push_back(t.reshape(-1));
  return at::cat(pieces);
}

/// The span of those with `chosen`, in order; nothing when there is none.
std::optional<LinearSpan> merged(const std::vector<LinearSpan>& spans, const std::function<bool(size_t)>& chosen) {
  std::optional<LinearSpan> out;
  for (size_t rank = 0; rank < spans.size(); ++rank)
    if (chosen(rank)) out = out ? merge_spans(*out, spans[rank]) : spans[rank];
  return out;
}

}  // namespace

LinearOutput ring_linear(const Collectives& group, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const LinearArguments& arguments) {
  require(group.layout == Layout::contiguous, "ring",
          "the contiguous layout for linear attention, whose spans merge in order", "zigzag");
  require(!arguments.cu_seqlens.defined(), "ring", "sequences that are not packed in linear attention", "cu_seqlens");
  counts_of(*group.transport, group.layout, k.size(2), "keys", *group.traffic);
  const LinearSpan own = span_summary(k, v, arguments);
  const at::Tensor all = group.stack(flattened(own));
  const auto spans = gathered(all, own);
  const auto rank = static_cast<size_t>(group.transport->rank());
  // Without an order every query sees all keys: those of the others come in as a state too.
  const auto before = merged(spans, [&](size_t other) { return arguments.causal ? other < rank : other != rank; });
  LinearArguments local = arguments;
  if (before) {
    const LinearSpan start = after_span(arguments.initial_state, arguments.initial_z, *before);
    local.initial_state = start.state;
    local.initial_z = start.z;
  }
  LinearOutput out = linear_attention(q, k, v, local);
  const LinearSpan whole =
      after_span(arguments.initial_state, arguments.initial_z, *merged(spans, [](size_t) { return true; }));
  out.state = whole.state;
  out.z = whole.z;
  out.o = group.depends(out.o, all);
  return out;
}

}  // namespace regard::sharding
