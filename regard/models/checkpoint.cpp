#include "regard/models/checkpoint.h"

#include <torch/library.h>

#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/models/positions.h"
#include "regard/nn/state_file.h"
#include "regard/ops/boundary.h"

namespace regard {
namespace {

using Sizes = std::vector<int64_t>;

/// The tensor in the declared shape where a resize can bring it there; else as it is.
at::Tensor fit(const WeightDeclaration& declared, const Sizes& grid, const at::Tensor& tensor) {
  if (tensor.sizes() == at::IntArrayRef(declared.shape)) return tensor;
  if (declared.name == "pos_embed" && tensor.dim() == 3)
    return resize_positions(tensor, {}, grid, declared.shape[1] - grid[0] * grid[1]);
  if (declared.name == "patch_embed.proj.weight" && tensor.dim() == 4)
    return resize_patch_kernel(adapt_input_channels(tensor, declared.shape[1]), {declared.shape[2], declared.shape[3]});
  return tensor;
}

Sizes grid_of(const Instance& instance) {
  const auto config = nlohmann::json::parse(instance.config());
  const auto image = config["img_size"].get<Sizes>(), patch = config["patch_size"].get<Sizes>();
  return {image.front() / patch.front(), image.back() / patch.back()};
}

}  // namespace

std::vector<at::Tensor> fit_vit(const Instance& instance, const NamedTensors& tensors) {
  if (instance.info().id != "vit") fail("fit_vit", "an instance of 'vit'", "'" + instance.info().id + "'");
  const Sizes grid = grid_of(instance);
  State state;
  for (const auto& [name, tensor] : tensors)
    if (!state.tensors.emplace(name, tensor).second) fail("fit_vit", "each weight once", "'" + name + "' twice");
  for (const auto& declared : instance.weights()) {
    const auto it = state.tensors.find(declared.name);
    if (it != state.tensors.end()) it->second = fit(declared, grid, it->second);
  }
  return weights_from(state, instance, "the tensors given");
}

namespace {

using Names = std::vector<std::string>;

void save_op(std::string path, std::string id, std::string config, at::TensorList weights) {
  save_weights(path, *mechanism(id).configure(config), weights);
}

std::tuple<std::string, std::string, std::vector<at::Tensor>> load_op(std::string path) {
  auto [instance, weights] = open_weights(path);
  return {instance->info().id, instance->config(), std::move(weights)};
}

std::vector<at::Tensor> fit_op(std::string config, at::TensorList tensors, Names names) {
  if (tensors.size() != names.size())
    fail("fit_vit", "one name for each of the " + std::to_string(tensors.size()) + " tensors",
         std::to_string(names.size()) + " names");
  NamedTensors named;
  for (size_t i = 0; i < names.size(); ++i) named.emplace_back(names[i], tensors[i]);
  return fit_vit(*mechanism("vit").configure(config), named);
}

}  // namespace
}  // namespace regard

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("save_checkpoint(str path, str id, str config, Tensor[] weights) -> ()", regard::guarded<&regard::save_op>);
  m.def("load_checkpoint(str path) -> (str, str, Tensor[])", regard::guarded<&regard::load_op>);
  m.def("fit_vit(str config, Tensor[] tensors, str[] names) -> Tensor[]", regard::guarded<&regard::fit_op>);
}
