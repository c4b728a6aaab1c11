#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace regard {

/// How a weight starts. Fans are read from the shape as torch.nn.init does.
struct Init {
  enum class Kind : uint8_t {
    zeros,
    ones,
    constant,
    normal,
    truncated_normal,
    uniform,
    xavier_uniform,
    kaiming_uniform,
    identity,
    repeated
  };
  Kind kind = Kind::zeros;
  double value = 0;             ///< constant: the value; normal, truncated_normal: std; uniform: bound
  double cut = 2;               ///< truncated_normal: cut at +-cut, absolute
  std::vector<double> entries;  ///< repeated: the last dimensions, the same for all leading ones
  static Init zeros() { return {Kind::zeros, 0, 2, {}}; }
  static Init ones() { return {Kind::ones, 1, 2, {}}; }
  static Init constant(double value) { return {Kind::constant, value, 2, {}}; }
  static Init normal(double std) { return {Kind::normal, std, 2, {}}; }
  static Init truncated_normal(double std, double cut = 2) { return {Kind::truncated_normal, std, cut, {}}; }
  static Init uniform(double bound) { return {Kind::uniform, bound, 2, {}}; }
  static Init xavier_uniform() { return {Kind::xavier_uniform, 0, 2, {}}; }
  static Init identity() { return {Kind::identity, 0, 2, {}}; }  ///< of two dimensions: 1 on the diagonal
  static Init kaiming_uniform() {
    return {Kind::kaiming_uniform, 0, 2, {}};
  }  ///< torch.nn.Linear's: U(-1/sqrt(fan_in), ..)
  /// For kernels and mixers that start as the identity: `entries` fill the last dimensions.
  static Init repeated(std::vector<double> entries) { return {Kind::repeated, 0, 2, std::move(entries)}; }
};

struct WeightDeclaration {
  std::string name;  ///< the official implementation's where one exists
  std::vector<int64_t> shape;
  Init init;
  bool buffer = false;  ///< not trained
  std::string alias;    ///< tied: shares the tensor of this name
};

/// The ordered list of a mechanism's weights, filled by its `declare`.
class Declaration {
 public:
  void weight(const std::string& name, std::vector<int64_t> shape, Init init);
  void buffer(const std::string& name, std::vector<int64_t> shape, Init init);
  void tied(const std::string& name, const std::string& to);
  /// name.weight (outputs, inputs) and, with `bias`, name.bias (outputs); torch.nn.Linear's initialization.
  void linear(const std::string& name, int64_t inputs, int64_t outputs, bool bias = true);
  void linear(const std::string& name, int64_t inputs, int64_t outputs, bool bias, Init weight_init, Init bias_init);
  /// name.weight = 1, name.bias = 0, both (width).
  void layer_norm(const std::string& name, int64_t width);
  /// All of `inner` under "prefix", e.g. "blocks.0.attn.".
  void include(const std::string& prefix, const std::vector<WeightDeclaration>& inner);

  const std::vector<WeightDeclaration>& all() const { return weights_; }

 private:
  std::vector<WeightDeclaration> weights_;
};

/// The tensors of one call, read by declared name. A view: cheap to copy, owns nothing but handles.
class Weights {
 public:
  Weights(const std::vector<WeightDeclaration>& declared, at::TensorList tensors);
  const at::Tensor& operator[](std::string_view name) const;  ///< throws when not declared
  bool has(std::string_view name) const;
  Weights under(std::string_view prefix) const;  ///< the names that start with prefix, without it
  /// y = x W^T + b with weights name.weight and, if declared, name.bias.
  at::Tensor linear(const at::Tensor& x, std::string_view name) const;
  at::Tensor layer_norm(const at::Tensor& x, std::string_view name, double epsilon) const;
  std::vector<at::Tensor> list() const;  ///< in declared order

 private:
  struct Table;
  std::shared_ptr<const Table> table_;
  std::string prefix_;
};

}  // namespace regard
