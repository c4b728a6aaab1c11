// torch.ops.regard.mechanism and its kin: the door to every mechanism for Python, exported programs and C++ owners.
//
// `mechanism` is composite (implicit): it owns no derivative and no fake kernel, and traces down to the kernel ops.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/nn/edit_json.h"
#include "regard/nn/mechanism.h"
#include "regard/nn/shapes.h"
#include "regard/ops/boundary.h"
#include "regard/ops/executor.h"

namespace regard {
namespace {

/// An output "NAME?" is one that the configuration may leave out: an empty vector where it does.
constexpr const char* mechanism_schema =
    "mechanism(str id, str config, Tensor[] weights, Tensor x, Tensor[]? inputs=None, str[]? input_names=None, "
    "SymInt[] grid=[], int prefix=0, bool training=False, Tensor? seed=None, str[]? outputs=None, "
    "str path=\"auto\", str executor=\"local\", str edits=\"\") "
    "-> Tensor[]";

using Strings = std::vector<std::string>;
// Lists whose default is none: schemas have no literal for an empty list of tensors or strings.
using OptionalTensors = std::optional<std::vector<at::Tensor>>;
using OptionalStrings = std::optional<Strings>;

const char* name_of(CacheStream::Kind kind) {
  return kind == CacheStream::Kind::append ? "append" : kind == CacheStream::Kind::ring ? "ring" : "state";
}

Context context_of(const std::string& id, const OptionalTensors& inputs, const OptionalStrings& names) {
  const std::vector<at::Tensor> tensors = inputs.value_or(std::vector<at::Tensor>());
  const Strings keys = names.value_or(Strings());
  if (tensors.size() != keys.size())
    fail(id, "one name for each of the " + std::to_string(tensors.size()) + " inputs", std::to_string(keys.size()));
  Context context;
  for (size_t i = 0; i < keys.size(); ++i)
    if (!context.inputs.emplace(keys[i], tensors[i]).second) fail(id, "each input once", "'" + keys[i] + "' twice");
  return context;
}

std::vector<at::Tensor> mechanism_op(std::string id, std::string config, at::TensorList weights, const at::Tensor& x,
                                     OptionalTensors inputs, OptionalStrings input_names, c10::SymIntArrayRef grid,
                                     int64_t prefix, bool training, const std::optional<at::Tensor>& seed,
                                     OptionalStrings outputs, std::string path, std::string executor,
                                     std::string edits) {
  const auto instance = mechanism(id).configure(config);
  Context context = context_of(id, inputs, input_names);
  context.training = training;
  context.grid = grid.vec();
  context.prefix = prefix;
  context.path = path;
  context.executor = make_executor(executor);
  if (!edits.empty()) context.edits = edits_from_json(edits, context.inputs);
  for (std::string name : outputs.value_or(Strings())) {
    const bool may_miss = name.ends_with('?');
    if (may_miss) name.pop_back();
    context.wanted.push_back(name);
    if (may_miss) context.optional.insert(name);
  }
  if (seed && seed->defined()) {
    if (seed->scalar_type() != at::kLong || seed->dim() != 0) fail(id, "seed, an int64 scalar", describe(*seed));
    context.seed = *seed;
  }
  std::vector<at::Tensor> results{instance->forward(weights, x, context)};
  for (const auto& name : context.wanted) {
    const auto it = context.outputs.find(name);
    results.push_back(it == context.outputs.end() ? at::empty({0}, x.options()) : it->second);
  }
  return results;
}

std::vector<at::Tensor> initialize_op(std::string id, std::string config, std::optional<at::ScalarType> dtype,
                                      std::optional<at::Device> device, std::optional<at::Generator> generator) {
  return initialize(*mechanism(id).configure(config), at::TensorOptions().dtype(dtype).device(device), generator);
}

std::string declare_op(std::string id, std::string config) {
  const auto instance = mechanism(id).configure(config);
  auto weights = nlohmann::json::array();
  for (const auto& weight : instance->weights())
    weights.push_back(
        {{"name", weight.name}, {"shape", weight.shape}, {"buffer", weight.buffer}, {"alias", weight.alias}});
  auto caches = nlohmann::json::array();
  for (const auto& stream : instance->caches())
    caches.push_back(
        {{"name", stream.name}, {"kind", name_of(stream.kind)}, {"entry", stream.entry}, {"length", stream.length}});
  return nlohmann::json{{"config", nlohmann::json::parse(instance->config())}, {"weights", weights}, {"caches", caches}}
      .dump();
}

std::string registry_op() { return registry_json(); }
std::string describe_op(std::string id) { return description_json(id); }

void load_plugin_op(std::string library) { load_plugin(library); }

TORCH_LIBRARY_FRAGMENT(regard, library) {
  library.def(mechanism_schema, guarded<&mechanism_op>);
  library.def(
      "initialize(str id, str config, ScalarType? dtype=None, Device? device=None, Generator? generator=None) "
      "-> Tensor[]",
      guarded<&initialize_op>);
  library.def("declare(str id, str config) -> str", guarded<&declare_op>);
  library.def("registry() -> str", guarded<&registry_op>);
  library.def("describe(str id) -> str", guarded<&describe_op>);
  library.def("load_plugin(str library) -> ()", guarded<&load_plugin_op>);
}

// vmap asks for a rule even of a composite op: run it, and let the ops inside be batched.
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, library) {
  library.impl("mechanism", guarded<&mechanism_op>);
}

}  // namespace

std::vector<at::Tensor> run(const Instance& instance, at::TensorList weights, const at::Tensor& x,
                            const Context& context) {
  if (!context.edits.empty()) {  // functions do not pass through the dispatcher
    Context copy = context;
    std::vector<at::Tensor> results{instance.forward(weights, x, copy)};
    for (const auto& name : copy.wanted) {
      const auto it = copy.outputs.find(name);  // an optional one may be missing
      results.push_back(it == copy.outputs.end() ? at::Tensor() : it->second);
    }
    return results;
  }
  std::vector<at::Tensor> inputs;
  Strings names;
  for (const auto& [name, tensor] : context.inputs) {
    if (!tensor.defined()) continue;
    inputs.push_back(tensor);
    names.push_back(name);
  }
  const std::optional<at::Tensor> seed = context.seed.defined() ? std::make_optional(context.seed) : std::nullopt;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("regard::mechanism", "").typed<decltype(mechanism_op)>();
  return rethrow_as_error([&] {
    return op.call(instance.info().id, instance.config(), weights, x, inputs, names, context.grid, context.prefix,
                   context.training, seed, context.wanted, context.path,
                   context.executor ? context.executor->text() : "local", std::string());
  });
}

}  // namespace regard
