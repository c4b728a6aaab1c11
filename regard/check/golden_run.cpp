// Runs a golden case. Official layouts are ours at the edges only: leaves keep the shapes of the file, so that
// gradients come out in them.

#include "regard/check/golden_run.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/check/call.h"
#include "regard/check/difference.h"

namespace regard::checking {
namespace {

struct Prepared {
  Case example;
  std::map<std::string, at::Tensor> leaves;  // "in.x", "param.beta": differentiable, in the file's shapes
};

at::Tensor typed(const at::Tensor& tensor, at::ScalarType type) {
  if (tensor.is_floating_point()) return tensor.to(type);
  return tensor.scalar_type() == at::kBool ? tensor : tensor.to(at::kLong);
}

int64_t width_of(const Instance& instance) {
  const auto config = nlohmann::json::parse(instance.config());
  return config.contains("width") && config["width"].is_number_integer() ? config["width"].get<int64_t>() : 0;
}

// A map (B, D, H, W) or (B, H, W, D) for a mechanism that takes tokens only: x (B, H * W, D), row-major, with its grid.
at::Tensor tokens_of(const at::Tensor& map, const Instance& instance, std::vector<int64_t>& grid) {
  if (map.dim() != 4 || instance.info().role == Role::host || instance.info().takes_maps) return map;
  const bool channels_first = map.size(1) == width_of(instance);
  const at::Tensor last = channels_first ? map.permute({0, 2, 3, 1}) : map;
  grid = {last.size(1), last.size(2)};
  return last.flatten(1, 2);
}

Prepared prepare(const GoldenFile& file, const GoldenCase& mapped, at::ScalarType type) {
  Prepared result;
  Case& example = result.example;
  example.instance = mapped.instance;
  example.grid = mapped.grid;
  example.prefix = mapped.prefix;
  const auto leaf = [&](const std::string& name, const at::Tensor& tensor) {
    at::Tensor own = typed(tensor, type).detach().clone();
    if (own.is_floating_point()) result.leaves[name] = own.requires_grad_(true);
    return own;
  };
  for (const auto& [name, tensor] : file.under("in.")) {
    const Target& target = mapped.inputs.at(name);
    if (target.kind == Target::Kind::x) {
      example.x = tokens_of(leaf("in." + name, tensor), *mapped.instance, example.grid);
    } else if (target.kind == Target::Kind::input) {
      example.inputs[target.name] = leaf("in." + name, tensor);
    }
  }
  if (!example.x.defined()) fail("golden", "an input that maps to x", file.path);
  example.weights = initialize(*mapped.instance, at::TensorOptions().dtype(type), generator_of(0));
  const auto& declared = mapped.instance->weights();
  for (const auto& [name, tensor] : file.under("param.")) {
    const Target& target = mapped.weights.at(name);
    for (size_t i = 0; i < declared.size(); ++i) {
      if (target.kind != Target::Kind::weight || declared[i].name != target.name) continue;
      if (tensor.numel() != example.weights[i].numel()) {
        fail("golden", "param." + name + " with the entries of " + shape_text(declared[i].shape),
             shape_text(tensor.sizes()));
      }
      example.weights[i] = leaf("param." + name, tensor).reshape(declared[i].shape);
    }
  }
  retie(example);
  return result;
}

std::vector<int64_t> without_ones(at::IntArrayRef shape) {
  std::vector<int64_t> result;
  std::copy_if(shape.begin(), shape.end(), std::back_inserter(result), [](int64_t size) { return size != 1; });
  return result;
}

// Ours in the file's shape: the same; tokens as a map; axes of length 1 apart. Undefined when it has no such form.
at::Tensor conform(const at::Tensor& ours, at::IntArrayRef shape) {
  if (ours.sizes() == shape) return ours;
  if (ours.dim() == 3 && shape.size() == 4 && ours.numel() == c10::multiply_integers(shape)) {
    if (ours.size(2) == shape[1]) return ours.transpose(1, 2).reshape(shape);
    if (ours.size(2) == shape[3]) return ours.reshape(shape);
  }
  if (without_ones(ours.sizes()) == without_ones(shape)) return ours.reshape(shape);
  return {};
}

Comparison compare(const std::string& name, const at::Tensor& expected, const at::Tensor& found, double tolerance,
                   double zero) {
  Comparison result;
  result.name = name;
  result.tolerance = tolerance;
  const at::Tensor ours = conform(found, expected.sizes());
  if (!ours.defined()) {
    result.reason = "shape " + shape_text(found.sizes()) + " instead of " + shape_text(expected.sizes());
    return result;
  }
  const Difference worst = difference(expected, ours);
  result.error = worst.error;
  result.index = worst.index;
  result.expected = worst.expected;
  result.found = worst.found;
  result.passed = worst.error <= tolerance;
  if (!result.passed && magnitude(expected) <= zero) {  // a gradient that is truly zero
    const double absolute = difference(expected, ours, 1).error;
    result.passed = absolute <= zero;
    if (result.passed)
      result.error = 0;
    else
      result.reason = "the gradient should be zero";
  }
  return result;
}

// sum(out * w), w in the shape of the file's output; "w.NAME" weighs out.NAME.
at::Tensor loss_of(const GoldenFile& file, const GoldenCase& mapped, const std::map<std::string, at::Tensor>& outputs,
                   at::ScalarType type) {
  at::Tensor loss;
  for (const auto& [name, target] : mapped.outputs) {
    const bool main = target.kind == Target::Kind::main;
    const auto own = file.tensors.find("w." + name), shared = file.tensors.find("w");
    const auto w = own != file.tensors.end() ? own : main ? shared : file.tensors.end();
    if (w == file.tensors.end() || !outputs.count(name)) continue;
    const at::Tensor ours = conform(outputs.at(name), w->second.sizes());
    if (!ours.defined()) continue;
    const at::Tensor term = (ours * w->second.to(type)).sum();
    loss = loss.defined() ? loss + term : term;
  }
  return loss;
}

void compare_gradients(const GoldenFile& file, const GoldenCase& mapped, const Prepared& prepared,
                       const std::map<std::string, at::Tensor>& outputs, GoldenRun& run, const Bounds& bounds) {
  const std::map<std::string, at::Tensor> expected = file.under("grad.");
  if (expected.empty()) return;
  const at::Tensor loss = loss_of(file, mapped, outputs, run.type);
  if (!loss.defined()) {
    run.reason = "gradients are given, but no w in the shape of a mapped output";
    run.passed = false;
    return;
  }
  std::vector<std::string> names;
  std::vector<at::Tensor> tensors;
  double largest = 0;
  for (const auto& [name, gradient] : expected) {
    if (!prepared.leaves.count(name)) continue;  // reported as unmatched, or ignored
    names.push_back(name);
    tensors.push_back(prepared.leaves.at(name));
    largest = std::max(largest, magnitude(gradient));
  }
  std::vector<at::Tensor> found;
  refusing([&] { found = gradients(loss, tensors); });
  const double zero = (run.type == at::kDouble ? 1e-12 : bounds.least) * largest;
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string name = "grad." + names[i];
    run.tensors.push_back(compare(name, expected.at(names[i]), found[i], bounds.of(name), zero));
  }
}

std::map<std::string, at::Tensor> outputs_of(const GoldenCase& mapped, Case example, const std::string& path) {
  for (const auto& [name, target] : mapped.outputs) {
    const auto& list = example.outputs;
    const bool new_one = std::find(list.begin(), list.end(), target.name) == list.end();
    if (target.kind == Target::Kind::output && new_one) example.outputs.push_back(target.name);
  }
  const std::vector<at::Tensor> results = call_all(example, path);
  std::map<std::string, at::Tensor> outputs;
  for (const auto& [name, target] : mapped.outputs) {
    if (target.kind == Target::Kind::main) outputs[name] = results.front();
    for (size_t i = 0; i < example.outputs.size(); ++i) {
      if (target.kind == Target::Kind::output && example.outputs[i] == target.name) outputs[name] = results[i + 1];
    }
  }
  return outputs;
}

}  // namespace

double Bounds::of(const std::string& name) const {
  const auto found = own.find(name);
  return found == own.end() ? least : std::max(least, found->second);
}

GoldenRun run_golden_case(const GoldenFile& file, const GoldenCase& mapped, const std::string& path,
                          at::ScalarType type, const Bounds& bounds) {
  const c10::AutoGradMode grad(true);
  GoldenRun run;
  run.path = path;
  run.type = type;
  const Prepared prepared = prepare(file, mapped, type);
  const PathCounts before = counts_now();
  call(prepared.example, path);  // alone: a weight matrix asked for beside it is always composite
  const PathCounts counts = since(before);
  const auto outputs = outputs_of(mapped, prepared.example, path);
  run.ran = true;
  run.passed = true;
  for (const auto& [name, ours] : outputs) {
    const std::string full = "out." + name;
    run.tensors.push_back(compare(full, file.tensors.at(full), ours, bounds.of(full), 0));
  }
  compare_gradients(file, mapped, prepared, outputs, run, bounds);
  if (outputs.empty()) run.reason = "the file has no output that maps to ours";
  if (counts.count("attention") && !ran_only(counts, "attention", path)) {
    run.reason = "the " + path + " path was asked for; ran: " + text_of(counts);
  }
  run.passed = run.passed && run.reason.empty();
  for (const Comparison& comparison : run.tensors) run.passed = run.passed && comparison.passed;
  return run;
}

Bounds float32_bounds(const GoldenFile& file, const GoldenCase& mapped, double least) {
  constexpr double headroom = 4;  // another order of summation
  Bounds bounds{least, {}};
  const GoldenRun composite = run_golden_case(file, mapped, "composite", at::kFloat, bounds);
  for (const Comparison& c : composite.tensors) {
    // An error over a magnitude of zero says nothing of rounding; neither does a wrong shape.
    if (c.reason.empty() && std::isfinite(c.error)) bounds.own[c.name] = headroom * c.error;
  }
  return bounds;
}

}  // namespace regard::checking
