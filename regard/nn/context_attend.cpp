// Attention inside a mechanism: the spec as the mechanism states it, run where the call's tokens lie.

#include "regard/base/error.h"
#include "regard/nn/context.h"
#include "regard/nn/tap.h"
#include "regard/ops/edited.h"
#include "regard/ops/executor.h"

namespace regard {

/// Pairs of different segments do not exist, and positions count from each segment's start.
void Context::keep_segments_apart(const at::Tensor& q, const at::Tensor& k, AttentionSpec& spec,
                                  AttentionArguments& arguments) const {
  if (!input("cu_seqlens").defined()) return;
  if (q.sym_size(2) != k.sym_size(2))
    fail(id_, "queries and keys of the same packed tokens", "different numbers of them");
  const at::Tensor tokens = q.transpose(1, 2);  // (1, T, H, Dh)
  arguments.named_captures["packed_segments"] = segments(tokens).unsqueeze(0);
  arguments.named_captures["packed_positions"] = positions(tokens).unsqueeze(0);
  const Expr same_segment = masks::documents("packed_segments", "packed_segments");
  spec.keep = spec.keep.defined() ? spec.keep & same_segment : same_segment;
  if (spec.counted.defined()) spec.counted = spec.counted & same_segment;
  spec.positions.query.tensor = spec.positions.key.tensor = "packed_positions";
}

AttentionOutput Context::attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, AttentionSpec spec,
                                AttentionArguments arguments) {
  const int64_t index = attentions_++;
  arguments.path = path;
  if (decoding_ && !input("memory").defined()) arguments.query_offset = past();
  keep_segments_apart(q, k, spec, arguments);
  Attending call{q, k, v, std::move(spec), std::move(arguments)};
  std::vector<std::function<at::Tensor(const at::Tensor&, const ops::Rows&)>> after;
  for (const auto& edit : edits) {
    if (edit.attention >= 0 && edit.attention != index) continue;
    if (edit.before) edit.before(call);
    if (edit.after) after.push_back(edit.after);
  }
  call.arguments = in_order(call.spec, std::move(call.arguments));
  if (executor) ++executor->asked;
  AttentionOutput out;
  if (!after.empty()) {
    require(!executor, id_.c_str(), "the local executor with an edit of the weights", "another");
    out = ops::attention_edited(call.q, call.k, call.v, call.spec, call.arguments,
                                [&after](at::Tensor weights, const ops::Rows& rows) {
                                  for (const auto& change : after) weights = change(weights, rows);
                                  return weights;
                                });
  } else if (executor) {
    out = executor->attend(call.q, call.k, call.v, call.spec, call.arguments);
  } else {
    out = attention(call.q, call.k, call.v, call.spec, call.arguments);
  }
  read_taps(*this, index, call, out);
  attended_ = std::make_shared<const Attending>(std::move(call));
  return out;
}

const Attending& Context::attended() const {
  require(attended_ != nullptr, id_.c_str(), "an attention before its map is asked for", "none");
  require(!executor || !executor->sharded(), id_.c_str(), "the map of an attention whose tokens lie here", "shards");
  return *attended_;
}

}  // namespace regard
