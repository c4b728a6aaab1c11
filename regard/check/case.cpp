#include "regard/check/case.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

#include "regard/check/difference.h"
#include "regard/nn/foreign.h"

namespace regard::checking {

at::Generator generator_of(uint64_t seed) { return at::make_generator<at::CPUGeneratorImpl>(seed); }

at::Tensor normal(at::IntArrayRef shape, at::Generator generator) {
  return at::randn(shape, std::move(generator), at::TensorOptions().dtype(at::kDouble));
}

namespace {

// Whether an input has a batch axis to cut: (B), (B, N), (B, N, D), (B, H, M, N), but not a mask (M, N), a bias of
// broadcast batch 1, or slopes (H).
bool has_batch_axis(const std::string& name, const at::Tensor& tensor, int64_t batch) {
  if (tensor.dim() == 0 || tensor.size(0) != batch) return false;
  if (name == "hidden" || name == "bias") return tensor.dim() == 4;
  return name != "slopes";
}

}  // namespace

Case Case::rows(int64_t begin, int64_t end) const {
  Case copy = *this;
  copy.x = x.slice(0, begin, end);
  for (auto& [name, tensor] : copy.inputs) {
    if (has_batch_axis(name, tensor, batch())) tensor = tensor.slice(0, begin, end);
  }
  return copy;
}

Case Case::with_x(const at::Tensor& replacement) const {
  Case copy = *this;
  copy.x = replacement;
  return copy;
}

Case Case::with_input(const std::string& name, const at::Tensor& value) const {
  Case copy = *this;
  copy.inputs[name] = value;
  return copy;
}

bool Case::foreign() const { return is_foreign(*instance); }

namespace {

// The dimensions of an input that count x's tokens; those of keys count them only without memory.
std::vector<int64_t> token_axes(const std::string& name, const at::Tensor& tensor, bool cross) {
  if (name == "segments" || name == "positions") return {tensor.dim() - 1};
  if (name == "key_hidden") return cross ? std::vector<int64_t>{} : std::vector<int64_t>{1};
  if (name == "hidden" || name == "bias")
    return cross ? std::vector<int64_t>{tensor.dim() - 2} : std::vector<int64_t>{tensor.dim() - 2, tensor.dim() - 1};
  if (name == "memory" || name == "memory_segments" || name == "memory_positions" || tensor.dim() < 2) return {};
  return {1};
}

}  // namespace

Case Case::first_tokens(int64_t count) const {
  Case copy = *this;
  copy.x = x.slice(1, 0, count);
  for (auto& [name, tensor] : copy.inputs) {
    if (name == "lengths") tensor = tensor.clamp_max(count);
    for (const int64_t axis : token_axes(name, tensor, has("memory"))) {
      if (tensor.size(axis) == tokens()) tensor = tensor.slice(axis, 0, count);
    }
  }
  if (!grid.empty()) copy.grid = {count - prefix};
  return copy;
}

Case Case::stretched(int64_t tokens, uint64_t seed) const {
  Case copy = *this;
  if (grid.size() > 1) {
    copy.grid.assign(grid.size(), 1);
    copy.grid.front() = 12;
    copy.grid.back() = tokens / 12;
    tokens = prefix + copy.grid.front() * copy.grid.back();
  } else if (!grid.empty()) {
    copy.grid = {tokens - prefix};
  }
  copy.x = normal({batch(), tokens, x.size(2)}, generator_of(seed));
  return copy;
}

std::vector<std::pair<std::string, std::string>> Case::padded() const {
  std::vector<std::pair<std::string, std::string>> pairs;
  if (has("lengths")) pairs.emplace_back("lengths", "x");
  if (has("memory_lengths")) pairs.emplace_back("memory_lengths", "memory");
  return pairs;
}

std::string Case::text() const {
  std::string text = "x " + shape_text(x.sizes());
  for (const auto& [name, tensor] : inputs) {
    text += ", " + name + " ";
    if (tensor.dim() == 1 && !tensor.is_floating_point() && tensor.numel() <= 8) {
      std::vector<int64_t> values;
      for (int64_t i = 0; i < tensor.numel(); ++i) values.push_back(tensor[i].item<int64_t>());
      text += "= " + shape_text(values);
    } else {
      text += shape_text(tensor.sizes());
    }
  }
  if (!grid.empty()) text += ", grid " + shape_text(grid);
  if (prefix) text += ", prefix " + std::to_string(prefix);
  if (executor != "local") text += ", executor " + executor;
  return text;
}

bool Subject::attends() const {
  return std::any_of(cases.begin(), cases.end(), [](const Case& c) { return c.attends; });
}

bool Subject::has_input(const std::string& name) const {
  return std::any_of(cases.begin(), cases.end(), [&](const Case& c) { return c.has(name); });
}

std::vector<at::Tensor> generic_weights(const Instance& instance, at::Generator generator) {
  std::vector<at::Tensor> weights = foreign_weights(instance);
  if (weights.empty()) weights = initialize(instance, at::TensorOptions().dtype(at::kDouble), generator);
  const auto& declared = instance.weights();
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool constant = weights[i].numel() > 0 && (weights[i] == weights[i].flatten()[0]).all().item<bool>();
    if (declared[i].buffer || !declared[i].alias.empty() || !weights[i].is_floating_point() || !constant) continue;
    weights[i] = weights[i] + 0.1 * normal(weights[i].sizes(), generator);
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    for (size_t j = 0; j < weights.size(); ++j) {
      if (!declared[i].alias.empty() && declared[j].name == declared[i].alias) weights[i] = weights[j];
    }
  }
  return weights;
}

}  // namespace regard::checking
