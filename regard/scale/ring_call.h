#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "regard/ops/attention.h"
#include "regard/ops/state.h"
#include "regard/scale/layout.h"
#include "regard/scale/traffic.h"
#include "regard/scale/transport.h"

namespace regard::sharding {

/// One attention over the shards of a ring, as a rank sees it. What lies beside the keys travels (k, v, captures read
/// by column(), key halves of operands); what lies beside the queries and what every rank holds stays.
struct RingCall {
  std::shared_ptr<Transport> transport;
  Layout layout = Layout::contiguous;
  Traffic* traffic = nullptr;
  AttentionSpec spec;
  AttentionArguments arguments;                   ///< without tensors: offset and path
  std::vector<int64_t> key_counts, query_counts;  ///< of every rank

  /// Tensors that stay: q, then the others by name.
  std::vector<std::string> captures, operands;  ///< names of those that stay, and of all operands
  /// Tensors that travel: k, v, captures by name, key halves of operands; with their dimensions of keys.
  std::vector<std::string> traveling_captures;
  std::vector<std::vector<int64_t>> key_dims;

  int64_t rank() const { return transport->rank(); }
  int64_t size() const { return transport->size(); }
  /// The shapes that the traveling tensors have where they come from `source`.
  std::vector<std::vector<int64_t>> shapes(const std::vector<at::Tensor>& own, int64_t source) const;
};

/// Tensors of a call: `stays` = q, captures, query halves of operands, sinks, seed; `travels` as key_dims says.
struct RingTensors {
  std::vector<at::Tensor> stays, travels;
};

/// Checks the call on every rank and has all ranks agree on it: either all go on or all throw.
RingCall make_ring_call(const std::string& executor, std::shared_ptr<Transport> transport, Layout layout,
                        const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                        const AttentionArguments& arguments, RingTensors& tensors);

/// The state of all local queries over the keys that came from `source`; undefined where no pair exists.
State absorb_block(const RingCall& call, const RingTensors& tensors, int64_t source);
/// The neutral state.
State absorb_nothing(const RingCall& call, const RingTensors& tensors);

/// Every rank's number, checked against the layout; throws on all ranks when one count does not fit.
std::vector<int64_t> counts_of(Transport& transport, Layout layout, int64_t own, const char* what, Traffic& traffic);

}  // namespace regard::sharding
