#include "regard/scale/ring_attention.h"

#include <ATen/core/grad_mode.h>

#include <functional>
#include <optional>

#include "regard/base/error.h"
#include "regard/ops/node.h"
#include "regard/scale/parcel.h"
#include "regard/scale/ring_call.h"

namespace regard::sharding {
namespace {

using ops::Saved;
using torch::autograd::Node;
using torch::autograd::variable_list;

constexpr int kBlockTag = 1, kGradientTag = 2;  // keys and values; their gradients

std::vector<at::Tensor> detached(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> out;
  for (const at::Tensor& t : tensors) out.push_back(t.defined() ? t.detach() : t);
  return out;
}

int64_t source_at(const RingCall& call, int64_t hop) { return (call.rank() + call.size() - hop) % call.size(); }

/// Sends the block on while it is read here; `visit(hop, tensors)` sees the own block first.
void circulate(const RingCall& call, RingTensors tensors, std::atomic<int64_t>& payload,
               const std::function<void(int64_t hop, const RingTensors&)>& visit) {
  const std::vector<at::Tensor> own = tensors.travels;
  for (int64_t hop = 0; hop < call.size(); ++hop) {
    std::optional<Parcel> parcel;
    if (hop + 1 < call.size())
      parcel.emplace(*call.transport, kBlockTag, tensors.travels, call.shapes(own, source_at(call, hop + 1)), payload,
                     call.traffic->metadata);
    visit(hop, tensors);
    if (parcel) tensors.travels = parcel->receive();
  }
}

State forward_state(const RingCall& call, const RingTensors& tensors) {
  State state;
  circulate(call, tensors, call.traffic->forward, [&](int64_t hop, const RingTensors& held) {
    state = merge(call.spec, state, absorb_block(call, held, source_at(call, hop)));
  });
  return state.defined() ? state : absorb_nothing(call, tensors);
}

/// Leaves for the derivatives that are wanted, others as constants; narrow types widened, so that gradients of blocks
/// add in float32.
std::vector<at::Tensor> leaves_of(const std::vector<at::Tensor>& tensors, const std::vector<bool>& wanted) {
  std::vector<at::Tensor> out;
  for (size_t i = 0; i < tensors.size(); ++i) {
    at::Tensor t = tensors[i];
    if (t.defined() && (t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf)) t = t.to(at::kFloat);
    out.push_back(t.defined() && wanted[i] ? t.detach().requires_grad_() : t);
  }
  return out;
}

void accumulate(at::Tensor& sum, const at::Tensor& term, at::ScalarType type) {
  if (!term.defined()) return;
  if (sum.defined())
    sum.add_(term);
  else
    sum = term.to(type);
}

/// The ring's own part of the backward.
class Backward {
 public:
  Backward(const RingCall& call, const State& state, std::vector<at::Tensor> stays, std::vector<at::Tensor> travels,
           std::vector<bool> stays_wanted, std::vector<bool> travels_wanted)
      : call_(call),
        state_(state),
        reference_(reference_of(call.spec, state)),
        tensors_{std::move(stays), std::move(travels)},
        stays_wanted_(std::move(stays_wanted)),
        travels_wanted_(std::move(travels_wanted)),
        stays_gradient_(tensors_.stays.size()),
        type_(tensors_.stays[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat) {}

  /// Gradients of what stays, then of what travels.
  variable_list run(const variable_list& grads) {
    finish_backward(grads);
    std::vector<at::Tensor> held(travels_wanted_.size());
    std::optional<Parcel> parcel;
    circulate(call_, tensors_, call_.traffic->backward, [&](int64_t hop, const RingTensors& block) {
      std::vector<at::Tensor> own = block_backward(block, source_at(call_, hop));
      if (parcel) {
        const auto before = parcel->receive();
        for (size_t i = 0, at = 0; i < own.size(); ++i)
          if (own[i].defined()) own[i].add_(before[at++]);
      }
      send(own, hop, parcel);
      held = std::move(own);
    });
    if (parcel) {
      const auto home = parcel->receive();
      for (size_t i = 0, at = 0; i < held.size(); ++i)
        if (held[i].defined()) held[i] = home[at++];
    }
    variable_list out = stays_gradient_;
    out.insert(out.end(), held.begin(), held.end());
    return out;
  }

 private:
  /// Cotangents of the terms that add up to the state, which are the same for every block; and the sinks' gradient.
  void finish_backward(const variable_list& grads) {
    const at::AutoGradMode on(true);
    std::vector<at::Tensor> inputs, outputs, cotangents;
    for (const at::Tensor& term : terms_of(call_.spec, state_, reference_))
      inputs.push_back(term.detach().requires_grad_());
    const std::vector<at::Tensor> terms = inputs;
    const size_t sinks_at = tensors_.stays.size() - 2;
    at::Tensor sinks = tensors_.stays[sinks_at];
    if (stays_wanted_[sinks_at]) {
      sinks = sinks.detach().requires_grad_();
      inputs.push_back(sinks);
    }
    const auto out =
        finish(call_.spec, state_of(call_.spec, state_, terms, reference_), sinks, tensors_.stays[0].scalar_type());
    const at::Tensor results[] = {out.o, out.lse, out.pairs};
    for (size_t i = 0; i < 3; ++i) {
      if (!grads[i].defined() || !results[i].requires_grad()) continue;
      outputs.push_back(results[i]);
      cotangents.push_back(grads[i].to(results[i].scalar_type()));
    }
    if (outputs.empty()) {
      cotangents_.resize(terms.size());
      return;
    }
    const auto g = torch::autograd::grad(outputs, inputs, cotangents, /*retain_graph=*/false, /*create_graph=*/false,
                                         /*allow_unused=*/true);
    cotangents_.assign(g.begin(), g.begin() + static_cast<std::ptrdiff_t>(terms.size()));
    if (stays_wanted_[sinks_at]) accumulate(stays_gradient_[sinks_at], g.back(), type_);
  }

  /// Recomputes one block; adds to what stays and returns the gradients of what travels, zeros for a skipped block.
  std::vector<at::Tensor> block_backward(const RingTensors& block, int64_t source) {
    const at::AutoGradMode on(true);
    const RingTensors leaves{leaves_of(block.stays, stays_wanted_), leaves_of(block.travels, travels_wanted_)};
    std::vector<at::Tensor> travels(block.travels.size());
    for (size_t i = 0; i < travels.size(); ++i)
      if (travels_wanted_[i])
        travels[i] =
            at::zeros(block.travels[i].sizes(), block.travels[i].options().dtype(type_).requires_grad(std::nullopt));
    const State state = absorb_block(call_, leaves, source);
    if (!state.defined()) return travels;
    std::vector<at::Tensor> outputs, cotangents, inputs;
    const auto terms = terms_of(call_.spec, state, reference_);
    for (size_t i = 0; i < terms.size(); ++i) {
      if (!cotangents_[i].defined() || !terms[i].requires_grad()) continue;
      outputs.push_back(terms[i]);
      cotangents.push_back(cotangents_[i]);
    }
    const size_t sinks_at = block.stays.size() - 2;
    for (size_t i = 0; i < sinks_at; ++i)
      if (stays_wanted_[i]) inputs.push_back(leaves.stays[i]);
    for (size_t i = 0; i < travels.size(); ++i)
      if (travels_wanted_[i]) inputs.push_back(leaves.travels[i]);
    if (outputs.empty() || inputs.empty()) return travels;
    const auto g = torch::autograd::grad(outputs, inputs, cotangents, /*retain_graph=*/false, /*create_graph=*/false,
                                         /*allow_unused=*/true);
    size_t at = 0;
    for (size_t i = 0; i < sinks_at; ++i)
      if (stays_wanted_[i]) accumulate(stays_gradient_[i], g[at++], type_);
    for (size_t i = 0; i < travels.size(); ++i)
      if (travels_wanted_[i]) accumulate(travels[i], g[at++], type_);
    return travels;
  }

  /// The gradients of the held block go on to the next rank; after the last hop they are on their owner.
  void send(const std::vector<at::Tensor>& own, int64_t hop, std::optional<Parcel>& parcel) {
    parcel.reset();
    std::vector<at::Tensor> sent;
    std::vector<std::vector<int64_t>> shapes;
    const auto arriving = call_.shapes(tensors_.travels, source_at(call_, hop + 1));
    for (size_t i = 0; i < own.size(); ++i) {
      if (!own[i].defined()) continue;
      sent.push_back(own[i]);
      shapes.push_back(arriving[i]);
    }
    if (sent.empty() || call_.size() == 1) return;
    parcel.emplace(*call_.transport, kGradientTag, sent, shapes, call_.traffic->backward, call_.traffic->metadata);
  }

  const RingCall& call_;
  const State& state_;
  const State reference_;
  const RingTensors tensors_;
  const std::vector<bool> stays_wanted_, travels_wanted_;
  variable_list stays_gradient_;
  std::vector<at::Tensor> cotangents_;
  const at::ScalarType type_;
};

struct RingBackward final : Node {
  RingCall call;
  std::vector<std::string> entries;
  Saved stays, travels, state;
  std::vector<bool> stays_wanted, travels_wanted;  // what needed gradients in the forward: the same on all ranks
  std::string name() const override { return "RingBackward"; }

  variable_list apply(variable_list&& grads) override {
    try {
      require(!at::GradMode::is_enabled(), "ring", "first derivatives", "create_graph");
      const at::NoGradGuard off;
      State whole;
      whole.names = entries;
      whole.tensors = detached(state.unpack(nullptr));
      Backward backward(call, whole, detached(stays.unpack(nullptr)), detached(travels.unpack(nullptr)), stays_wanted,
                        travels_wanted);
      variable_list out = backward.run(grads);
      std::vector<at::Tensor> inputs = stays.unpack(nullptr);
      for (const at::Tensor& t : travels.unpack(nullptr)) inputs.push_back(t);
      for (size_t i = 0; i < out.size(); ++i)
        if (out[i].defined()) out[i] = out[i].to(inputs[i].scalar_type());
      return out;
    } catch (const std::exception& error) {
      call.transport->poison("rank " + std::to_string(call.rank()) + " failed: " + error.what());
      throw;
    }
  }

  void release_variables() override {
    stays.release();
    travels.release();
    state.release();
  }
};

std::vector<bool> wanted(const std::vector<at::Tensor>& tensors) {
  std::vector<bool> out;
  for (const at::Tensor& t : tensors) out.push_back(t.defined() && t.requires_grad() && at::GradMode::is_enabled());
  return out;
}

AttentionOutput run(const RingCall& call, const RingTensors& tensors, const at::Tensor& sinks) {
  State state;
  AttentionOutput out;
  {
    const at::NoGradGuard off;
    state = forward_state(call, {detached(tensors.stays), detached(tensors.travels)});
    out = finish(call.spec, state, sinks.defined() ? sinks.detach() : sinks, tensors.stays[0].scalar_type());
    // The node keeps the state: an output that is one of its tensors must be another object.
    out = {out.o.detach(), out.lse.detach(), out.pairs.detach()};
  }
  std::vector<at::Tensor> inputs = tensors.stays;
  inputs.insert(inputs.end(), tensors.travels.begin(), tensors.travels.end());
  if (!at::GradMode::is_enabled() || !ops::any_requires_grad(inputs)) return out;
  auto node = ops::make_node<RingBackward>();
  node->set_next_edges(ops::edges_of(inputs));
  node->call = call;
  node->entries = state.names;
  node->stays.save(tensors.stays);
  node->travels.save(tensors.travels);
  node->state.save(state.tensors);
  node->stays_wanted = wanted(tensors.stays);
  node->travels_wanted = wanted(tensors.travels);
  torch::autograd::set_history(out.o, node);
  torch::autograd::set_history(out.lse, node);
  torch::autograd::set_history(out.pairs, node);
  return out;
}

}  // namespace

AttentionOutput ring_attention(const std::string& executor, std::shared_ptr<Transport> transport, Layout layout,
                               const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSpec& spec,
                               const AttentionArguments& arguments) {
  RingTensors tensors;
  const RingCall call = make_ring_call(executor, transport, layout, q, k, v, spec, arguments, tensors);
  std::vector<at::Tensor> all = tensors.stays;
  all.insert(all.end(), tensors.travels.begin(), tensors.travels.end());
  require(!ops::any_forward_grad(all), "ring", "reverse derivatives", "forward mode");
  try {
    return run(call, tensors, arguments.sinks);
  } catch (const std::exception& error) {
    transport->poison("rank " + std::to_string(transport->rank()) + " failed: " + error.what());
    throw;
  }
}

}  // namespace regard::sharding
