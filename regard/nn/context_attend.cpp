// Attention inside a mechanism: the spec as the mechanism states it, run where the call's tokens lie.

#include <algorithm>

#include "regard/base/error.h"
#include "regard/nn/context.h"
#include "regard/nn/edit_json.h"
#include "regard/nn/tap.h"
#include "regard/ops/edited.h"
#include "regard/ops/executor.h"
#include "regard/ops/packed.h"

namespace regard {

/// Pairs of different segments do not exist, and positions count from each segment's start.
void Context::keep_segments_apart(const at::Tensor& q, const at::Tensor& k, AttentionSpec& spec,
                                  AttentionArguments& arguments) const {
  const at::Tensor bounds = cu_seqlens();
  if (!bounds.defined()) return;
  if (input("memory").defined() || q.sym_size(2) != k.sym_size(2))
    fail(id_, "queries and keys of the same packed tokens",
         input("memory").defined() ? "memory" : "other numbers of them");
  keep_sequences_apart(id_.c_str(), bounds, bounds, q, k, spec, arguments);
}

/// The call where its tokens lie, with the edits of attention number `attention`.
Attending Context::prepared(int64_t attention, Attending call) const {
  call.arguments.path = path;
  if (decoding_ && !input("memory").defined()) call.arguments.query_offset = past();
  keep_segments_apart(call.q, call.k, call.spec, call.arguments);
  for (const auto& edit : edits) {
    if (edit.attention >= 0 && edit.attention != attention) continue;
    if (!edit.layer.empty() && !names_layer(edit.layer, layer())) continue;
    if (edit.before) edit.before(call);
    if (edit.after.change) call.after.push_back(edit.after);
    if (edit.reached) ++*edit.reached;
  }
  return call;
}

AttentionOutput Context::computed(Attending& call) {
  call.arguments = in_order(call.spec, std::move(call.arguments));
  if (executor) ++executor->asked;
  if (!call.after.empty()) {
    if (executor && executor->text() != "stripe")
      fail(id_, "executor local or stripe, which see whole rows, with an edit of the weights", executor->text());
    return ops::attention_edited(call.q, call.k, call.v, call.spec, call.arguments, call.after);
  }
  if (executor) return executor->attend(call.q, call.k, call.v, call.spec, call.arguments);
  return attention(call.q, call.k, call.v, call.spec, call.arguments);
}

AttentionOutput Context::attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, AttentionSpec spec,
                                AttentionArguments arguments) {
  const int64_t index = attentions_++;
  Attending call = prepared(index, {q, k, v, std::move(spec), std::move(arguments), {}});
  AttentionOutput out = computed(call);
  read_taps(*this, index, call, out);
  attended_ = std::make_shared<const Attending>(std::move(call));
  return out;
}

AttentionOutput Context::companion(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, AttentionSpec spec,
                                   AttentionArguments arguments) {
  const Expr score = spec.score;
  Attending call =
      prepared(std::max<int64_t>(attentions_ - 1, 0), {q, k, v, std::move(spec), std::move(arguments), {}});
  call.spec.score = score;
  AttentionOutput out = computed(call);
  attended_ = std::make_shared<const Attending>(std::move(call));
  return out;
}

const Attending& Context::attended() const {
  require(attended_ != nullptr, id_.c_str(), "an attention before its map is asked for", "none");
  require(!executor || !executor->sharded(), id_.c_str(), "the map of an attention whose tokens lie here", "shards");
  return *attended_;
}

}  // namespace regard
