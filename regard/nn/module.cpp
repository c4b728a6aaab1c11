#include "regard/nn/module.h"

#include "regard/base/error.h"
#include "regard/nn/state_file.h"

namespace regard::nn {
namespace {

/// The submodule of `root` at the dotted path before the last part of `name`, made where missing.
std::pair<torch::nn::Module*, std::string> place_of(torch::nn::Module& root, const std::string& name) {
  torch::nn::Module* owner = &root;
  size_t begin = 0;
  for (size_t dot = name.find('.'); dot != std::string::npos; begin = dot + 1, dot = name.find('.', begin)) {
    const std::string part = name.substr(begin, dot - begin);
    const auto children = owner->named_children();
    const auto* known = children.find(part);
    owner = known ? known->get() : owner->register_module(part, std::make_shared<torch::nn::Module>(part)).get();
  }
  return {owner, name.substr(begin)};
}

}  // namespace

Module::Module(const std::string& id, const std::string& config, const at::TensorOptions& options)
    : torch::nn::Module(id), instance_(mechanism(id).configure(config)) {
  own(initialize(*instance_, options));
}

void Module::own(const std::vector<at::Tensor>& tensors) {
  const auto& declared = instance_->weights();
  for (size_t i = 0; i < declared.size(); ++i) {
    const auto [owner, name] = place_of(*this, declared[i].name);
    // Tied weights are one tensor: initialize gives it twice.
    if (declared[i].buffer)
      weights_.push_back(owner->register_buffer(name, tensors[i]));
    else
      weights_.push_back(owner->register_parameter(name, tensors[i]));
  }
}

at::Tensor Module::forward(const at::Tensor& x) {
  Context context;
  return forward(x, context);
}

at::Tensor Module::forward(const at::Tensor& x, Context& context) {
  context.training = is_training();
  auto results = run(*instance_, weights_, x, context);
  for (size_t i = 0; i < context.wanted.size(); ++i) context.outputs[context.wanted[i]] = results[i + 1];
  return results[0];
}

std::vector<at::Tensor> Module::weights() const { return weights_; }

void Module::save(const std::string& path) const { save_weights(path, *instance_, weights_); }

void Module::load(const std::string& path) {
  const auto [instance, loaded] = open_weights(path);
  if (instance->info().id != instance_->info().id || instance->config() != instance_->config())
    fail("Module::load", instance_->info().id + " " + instance_->config() + " in '" + path + "'",
         instance->info().id + " " + instance->config());
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < weights_.size(); ++i) weights_[i].copy_(loaded[i]);
}

std::shared_ptr<Module> Module::open(const std::string& path) {
  const auto [instance, loaded] = open_weights(path);
  auto module = std::make_shared<Module>(instance->info().id, instance->config());
  for (size_t i = 0; i < loaded.size(); ++i) module->weights_[i].set_data(loaded[i]);
  return module;
}

std::shared_ptr<torch::nn::Module> Module::clone(const std::optional<torch::Device>& device) const {
  auto copy = std::make_shared<Module>(instance_->info().id, instance_->config());
  copy->copy_from(*this, device);
  return copy;
}

void Module::clone_(torch::nn::Module& other, const std::optional<torch::Device>& device) {
  const auto* source = dynamic_cast<const Module*>(&other);
  require(source != nullptr, "Module::clone", "a module of the same kind", other.name());
  copy_from(*source, device);
}

void Module::copy_from(const Module& other, const std::optional<torch::Device>& device) {
  const torch::NoGradGuard no_grad;
  train(other.is_training());
  for (size_t i = 0; i < weights_.size(); ++i) {
    const at::Tensor& from = other.weights_[i];
    weights_[i].set_data(device ? from.detach().to(*device, /*non_blocking=*/false, /*copy=*/true) : from.detach().clone());
    weights_[i].set_requires_grad(from.requires_grad());
  }
}

void Module::pretty_print(std::ostream& stream) const {
  stream << "regard::nn::Module(" << instance_->info().id << ", " << instance_->config() << ")";
}

}  // namespace regard::nn
