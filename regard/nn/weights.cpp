#include "regard/nn/weights.h"

#include <cmath>
#include <unordered_map>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard {

void Declaration::weight(const std::string& name, std::vector<int64_t> shape, Init init) {
  weights_.push_back({name, std::move(shape), init, /*buffer=*/false, /*alias=*/""});
}

void Declaration::buffer(const std::string& name, std::vector<int64_t> shape, Init init) {
  weights_.push_back({name, std::move(shape), init, /*buffer=*/true, /*alias=*/""});
}

void Declaration::tied(const std::string& name, const std::string& to) {
  for (const auto& weight : weights_) {
    if (weight.name != to) continue;
    weights_.push_back({name, weight.shape, weight.init, weight.buffer, weight.alias.empty() ? to : weight.alias});
    return;
  }
  fail("Declaration::tied", "'" + to + "' to be declared before '" + name + "'", "no such weight");
}

void Declaration::linear(const std::string& name, int64_t inputs, int64_t outputs, bool bias) {
  const double bound = inputs > 0 ? 1 / std::sqrt(static_cast<double>(inputs)) : 0;
  linear(name, inputs, outputs, bias, Init::kaiming_uniform(), Init::uniform(bound));
}

void Declaration::linear(const std::string& name, int64_t inputs, int64_t outputs, bool bias, Init weight_init,
                         Init bias_init) {
  weight(name + ".weight", {outputs, inputs}, weight_init);
  if (bias) weight(name + ".bias", {outputs}, bias_init);
}

void Declaration::layer_norm(const std::string& name, int64_t width) {
  weight(name + ".weight", {width}, Init::ones());
  weight(name + ".bias", {width}, Init::zeros());
}

void Declaration::include(const std::string& prefix, const std::vector<WeightDeclaration>& inner) {
  for (auto weight : inner) {
    weight.name = prefix + weight.name;
    if (!weight.alias.empty()) weight.alias = prefix + weight.alias;
    weights_.push_back(std::move(weight));
  }
}

struct Weights::Table {
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;
  std::unordered_map<std::string, size_t> positions;
};

Weights::Weights(const std::vector<WeightDeclaration>& declared, at::TensorList tensors) {
  if (declared.size() != tensors.size())
    fail("Weights", std::to_string(declared.size()) + " tensors", std::to_string(tensors.size()));
  auto table = std::make_shared<Table>();
  table->tensors = tensors.vec();
  for (size_t i = 0; i < declared.size(); ++i) {
    table->names.push_back(declared[i].name);
    table->positions.emplace(declared[i].name, i);
  }
  table_ = std::move(table);
}

const at::Tensor& Weights::operator[](std::string_view name) const {
  const std::string full = prefix_ + std::string(name);
  const auto it = table_->positions.find(full);
  if (it == table_->positions.end())
    fail("Weights", "a declared weight", "'" + full + "'" + suggestion(full, table_->names));
  return table_->tensors[it->second];
}

bool Weights::has(std::string_view name) const { return table_->positions.count(prefix_ + std::string(name)) > 0; }

Weights Weights::under(std::string_view prefix) const {
  Weights view = *this;
  view.prefix_ += prefix;
  return view;
}

at::Tensor Weights::linear(const at::Tensor& x, std::string_view name) const {
  const std::string base(name);
  const at::Tensor bias = has(base + ".bias") ? (*this)[base + ".bias"] : at::Tensor();
  return at::linear(x, (*this)[base + ".weight"], bias);
}

at::Tensor Weights::layer_norm(const at::Tensor& x, std::string_view name, double epsilon) const {
  const std::string base(name);
  const at::Tensor& scale = (*this)[base + ".weight"];
  return at::layer_norm_symint(x, scale.sym_sizes(), scale, (*this)[base + ".bias"], epsilon);
}

std::vector<at::Tensor> Weights::list() const {
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < table_->names.size(); ++i)
    if (table_->names[i].compare(0, prefix_.size(), prefix_) == 0) tensors.push_back(table_->tensors[i]);
  return tensors;
}

}  // namespace regard
