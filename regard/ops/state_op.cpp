// torch.ops.regard.{absorb_state, merge_states, finish_state, state_entries, offers, attend_on}: states and executors
// for Python and exported programs. All are composite: they trace down to the attention op.

#include <torch/library.h>

#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/ops/boundary.h"
#include "regard/ops/executor.h"
#include "regard/ops/executor_offers.h"
#include "regard/ops/state.h"

namespace regard {
namespace {

using Tensors = std::vector<at::Tensor>;
using Strings = std::vector<std::string>;

AttentionArguments arguments_of(at::TensorList captures, at::TensorList operands,
                                const std::optional<at::Tensor>& sinks, const std::optional<at::Tensor>& seed,
                                c10::SymInt query_offset, std::string path) {
  AttentionArguments out;
  out.captures = captures.vec();
  out.operands = operands.vec();
  if (sinks && sinks->defined()) out.sinks = *sinks;
  if (seed && seed->defined()) out.seed = *seed;
  out.query_offset = std::move(query_offset);
  out.path = std::move(path);
  return out;
}

State state_of_lists(const char* function, const Strings& names, const Tensors& tensors) {
  require(names.size() == tensors.size(), function, "one name for each tensor of a state",
          std::to_string(names.size()) + " names of " + std::to_string(tensors.size()) + " tensors");
  State state;
  state.names = names;
  state.tensors = tensors;
  return state;
}

std::tuple<Tensors, Strings> lists_of(const State& state) { return {state.tensors, state.names}; }

std::tuple<Tensors, Strings> absorb_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::string spec,
                                       at::TensorList captures, at::TensorList operands,
                                       const std::optional<at::Tensor>& seed, c10::SymInt query_offset,
                                       std::optional<c10::SymInt> keys, std::string path) {
  return lists_of(absorb(q, k, v, spec_from_json(spec),
                         arguments_of(captures, operands, std::nullopt, seed, std::move(query_offset), std::move(path)),
                         keys));
}

std::tuple<Tensors, Strings> merge_op(std::string spec, Strings names1, Tensors state1, Strings names2,
                                      Tensors state2) {
  return lists_of(
      merge(spec_from_json(spec), state_of_lists("merge", names1, state1), state_of_lists("merge", names2, state2)));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> finish_op(std::string spec, Strings names, Tensors state,
                                                         const std::optional<at::Tensor>& sinks, at::ScalarType dtype) {
  const auto out = finish(spec_from_json(spec), state_of_lists("finish", names, state),
                          sinks && sinks->defined() ? *sinks : at::Tensor(), dtype);
  return {out.o, out.lse, out.pairs};
}

std::string entries_op(std::string spec, int64_t value_width) {
  auto list = nlohmann::json::array();
  for (const auto& entry : state_entries(spec_from_json(spec), value_width))
    list.push_back({{"name", entry.name}, {"width", entry.width}});
  return list.dump();
}

int64_t bytes_op(std::string spec, int64_t B, int64_t H, int64_t M, int64_t value_width, int64_t element_size) {
  return state_bytes(spec_from_json(spec), B, H, M, value_width, element_size);
}

std::string offers_op(std::string spec) {
  auto object = nlohmann::json::object();
  for (const auto& offer : offers(spec_from_json(spec))) object[offer.name] = offer.refusal;
  return object.dump();
}

std::string executors_op() {
  auto object = nlohmann::json::object();
  for (const auto& info : executors()) object[info.name] = info.doc;
  return object.dump();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_on_op(std::string executor, const at::Tensor& q,
                                                            const at::Tensor& k, const at::Tensor& v, std::string spec,
                                                            at::TensorList captures, at::TensorList operands,
                                                            const std::optional<at::Tensor>& sinks,
                                                            const std::optional<at::Tensor>& seed,
                                                            c10::SymInt query_offset, std::string path) {
  const auto where = make_executor(executor);
  const AttentionSpec parsed = spec_from_json(spec);
  const auto arguments = arguments_of(captures, operands, sinks, seed, std::move(query_offset), std::move(path));
  const auto out = where ? where->attend(q, k, v, parsed, arguments) : attention(q, k, v, parsed, arguments);
  return {out.o, out.lse, out.pairs};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "absorb_state(Tensor q, Tensor k, Tensor v, str spec, Tensor[] captures, Tensor[] operands, Tensor? seed=None, "
      "SymInt query_offset=0, SymInt? keys=None, str path='auto') -> (Tensor[] state, str[] names)",
      guarded<&absorb_op>);
  m.def(
      "merge_states(str spec, str[] names1, Tensor[] state1, str[] names2, Tensor[] state2) "
      "-> (Tensor[] state, str[] names)",
      guarded<&merge_op>);
  m.def(
      "finish_state(str spec, str[] names, Tensor[] state, Tensor? sinks, ScalarType dtype) "
      "-> (Tensor o, Tensor lse, Tensor pairs)",
      guarded<&finish_op>);
  m.def("state_entries(str spec, int value_width) -> str", guarded<&entries_op>);
  m.def("state_bytes(str spec, int B, int H, int M, int value_width, int element_size) -> int", guarded<&bytes_op>);
  m.def("offers(str spec) -> str", guarded<&offers_op>);
  m.def("executors() -> str", guarded<&executors_op>);
  m.def(
      "attend_on(str executor, Tensor q, Tensor k, Tensor v, str spec, Tensor[] captures, Tensor[] operands, "
      "Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0, str path='auto') "
      "-> (Tensor o, Tensor lse, Tensor pairs)",
      guarded<&attend_on_op>);
}

}  // namespace regard
