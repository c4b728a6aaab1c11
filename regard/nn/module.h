#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "regard/nn/mechanism.h"

namespace regard::nn {

/// A mechanism that owns its weights: an ordinary torch::nn::Module.
///
///     auto pool = std::make_shared<regard::nn::Module>("simpool", R"({"width": 192, "gamma": 1.25})");
///     torch::optim::AdamW optimizer(pool->parameters());
///     at::Tensor y = pool->forward(x);                        // (B, N, 192) -> (B, 192)
///     pool->save("pool.safetensors");
///     auto same = regard::nn::Module::open("pool.safetensors");
///
/// Parameters and buffers have the names that the mechanism declares, as submodules where the names are dotted, so that
/// named_parameters() agrees with Python's state_dict(). Tied weights are registered under both names.
/// Errors: an unknown id (with the nearest one), a bad configuration, and what forward of the mechanism refuses.
class Module : public torch::nn::Module {
 public:
  explicit Module(const std::string& id, const std::string& config = "{}", const at::TensorOptions& options = {});

  /// The main output. Trains when the module does; `context` brings inputs, grid and prefix.
  at::Tensor forward(const at::Tensor& x);
  at::Tensor forward(const at::Tensor& x, Context& context);  ///< puts the outputs that it wants into context.outputs

  const Instance& instance() const { return *instance_; }
  std::vector<at::Tensor> weights() const;                    ///< in declared order

  /// One safetensors file: weights by name, id and configuration beside them. Written whole or not at all.
  void save(const std::string& path) const;
  /// Weights of the same mechanism and configuration; their types are converted to the module's.
  void load(const std::string& path);
  /// A new module of the id, configuration, weights and types that a file holds.
  static std::shared_ptr<Module> open(const std::string& path);

  std::shared_ptr<torch::nn::Module> clone(const std::optional<torch::Device>& device = std::nullopt) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  void clone_(torch::nn::Module& other, const std::optional<torch::Device>& device) override;
  void copy_from(const Module& other, const std::optional<torch::Device>& device);
  void own(const std::vector<at::Tensor>& tensors);

  std::shared_ptr<const Instance> instance_;
  std::vector<at::Tensor> weights_;
};

}  // namespace regard::nn
