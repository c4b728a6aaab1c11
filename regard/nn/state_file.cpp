#include "regard/nn/state_file.h"

#include <algorithm>
#include <cstring>

#include "regard/base/error.h"
#include "regard/base/names.h"
#include "regard/base/safetensors.h"
#include "regard/nn/shapes.h"

namespace regard {
namespace {

struct TypeName {
  at::ScalarType type;
  const char* name;
};
constexpr TypeName type_names[] = {
    {at::kDouble, "F64"}, {at::kFloat, "F32"}, {at::kHalf, "F16"},  {at::kBFloat16, "BF16"}, {at::kLong, "I64"},
    {at::kInt, "I32"},    {at::kShort, "I16"}, {at::kChar, "I8"},   {at::kByte, "U8"},       {at::kBool, "BOOL"}};

at::ScalarType type_of(const TensorSpan& span, const std::string& path) {
  for (const auto& entry : type_names)
    if (span.dtype == entry.name) return entry.type;
  fail("read_state", "tensors of a type that torch has", "'" + span.name + "' of " + span.dtype + " in '" + path + "'");
}

const char* name_of(at::ScalarType type) {
  for (const auto& entry : type_names)
    if (type == entry.type) return entry.name;
  fail("write_state", "tensors of a real, integer or boolean type", c10::toString(type));
}

}  // namespace

State read_state(const std::string& path) {
  const Safetensors file(path);
  State state;
  state.metadata = file.metadata();
  for (const auto& span : file.tensors()) {
    at::Tensor tensor = at::empty(span.shape, at::TensorOptions().dtype(type_of(span, path)));
    if (span.bytes > 0) std::memcpy(tensor.mutable_data_ptr(), span.data, span.bytes);
    state.tensors.emplace(span.name, std::move(tensor));
  }
  return state;
}

void write_state(const std::string& path, const State& state) {
  std::vector<at::Tensor> held;  // what the spans point into
  std::vector<TensorSpan> spans;
  for (const auto& [name, tensor] : state.tensors) {
    held.push_back(tensor.detach().cpu().contiguous());
    const at::Tensor& host = held.back();
    spans.push_back({name, name_of(host.scalar_type()), host.sizes().vec(), host.const_data_ptr(), host.nbytes()});
  }
  write_safetensors(path, spans, state.metadata);
}

void save_weights(const std::string& path, const Instance& instance, at::TensorList weights) {
  const auto& declared = instance.weights();
  if (weights.size() != declared.size())
    fail("save_weights", std::to_string(declared.size()) + " weights", std::to_string(weights.size()));
  State state;
  state.metadata = {{"format", "pt"}, {"mechanism", instance.info().id}, {"config", instance.config()}};
  for (size_t i = 0; i < declared.size(); ++i)
    if (declared[i].alias.empty()) state.tensors.emplace(declared[i].name, weights[i]);
  write_state(path, state);
}

std::vector<at::Tensor> weights_from(const State& state, const Instance& instance, const std::string& source) {
  const std::string& id = instance.info().id;
  std::vector<std::string> names, present;
  for (const auto& [name, unused] : state.tensors) present.push_back(name);
  std::vector<at::Tensor> weights;
  for (const auto& weight : instance.weights()) {
    names.push_back(weight.name);
    const auto it = state.tensors.find(weight.alias.empty() ? weight.name : weight.alias);
    if (it == state.tensors.end())
      fail(id, "weight " + weight.name + " in '" + source + "'", "none" + suggestion(weight.name, present));
    if (it->second.sizes() != at::IntArrayRef(weight.shape))
      fail(id, "weight " + weight.name + " " + describe(at::IntArrayRef(weight.shape)) + " in '" + source + "'",
           describe(it->second));
    if (!weight.buffer && !at::isFloatingType(it->second.scalar_type()))
      fail(id, "weight " + weight.name + " of a floating dtype in '" + source + "'", describe(it->second));
    weights.push_back(it->second);
  }
  for (const auto& name : present)
    if (std::find(names.begin(), names.end(), name) == names.end())
      fail(id, "only declared weights in '" + source + "'", "'" + name + "'" + suggestion(name, names));
  return weights;
}

std::pair<std::shared_ptr<const Instance>, std::vector<at::Tensor>> open_weights(const std::string& path) {
  const State state = read_state(path);
  const auto id = state.metadata.find("mechanism"), config = state.metadata.find("config");
  if (id == state.metadata.end() || config == state.metadata.end())
    fail("open_weights", "a file with 'mechanism' and 'config' in its metadata", "'" + path + "' without");
  auto instance = mechanism(id->second).configure(config->second);
  auto weights = weights_from(state, *instance, path);
  return {std::move(instance), std::move(weights)};
}

}  // namespace regard
