#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "regard/nn/mechanism.h"

namespace regard {

/// Tensors by name and what is said beside them: a safetensors file in memory.
struct State {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Reads every tensor of a safetensors file, copied to host memory.
State read_state(const std::string& path);
/// Writes tensors of any device and strides, whole or not at all.
void write_state(const std::string& path, const State& state);

/// Weights in declared order with the id ("mechanism") and configuration ("config") beside them. Tied weights are stored
/// once.
void save_weights(const std::string& path, const Instance& instance, at::TensorList weights);

/// The weights of `instance` from a state that names them, in declared order. Errors name a missing weight, one of
/// another shape, and names that the instance does not declare.
std::vector<at::Tensor> weights_from(const State& state, const Instance& instance, const std::string& source);

/// The instance that a file written by save_weights belongs to, and its weights.
std::pair<std::shared_ptr<const Instance>, std::vector<at::Tensor>> open_weights(const std::string& path);

}  // namespace regard
