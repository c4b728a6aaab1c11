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

using Tensors = std::map<std::string, at::Tensor>;

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

// The differentiable tensors of the file by name ("in.x", "param.beta"), in the file's shapes; booleans and integers as
// they are.
Tensors leaves_of(const GoldenFile& file, at::ScalarType type) {
  Tensors leaves;
  for (const auto& [name, tensor] : file.tensors) {
    if (name.rfind("in.", 0) != 0 && name.rfind("param.", 0) != 0) continue;
    const at::Tensor own = typed(tensor, type).detach().clone();
    leaves[name] = own.is_floating_point() ? own.requires_grad_(true) : own;
  }
  return leaves;
}

void place_inputs(const GoldenFile& file, const GoldenStep& step, const Tensors& known, Case& example) {
  for (const auto& [name, target] : step.inputs) {
    if (!target.placed()) continue;
    if (!known.count(name)) fail("golden", name + " from an earlier step", file.path);
    const at::Tensor& tensor = known.at(name);
    if (target.inverted && tensor.scalar_type() != at::kBool) fail("golden", name + " of booleans", file.path);
    if (target.kind == Target::Kind::x) {
      example.x = tokens_of(tensor, *step.instance, example.grid);
    } else {
      example.inputs[target.name] = target.inverted ? tensor.logical_not() : tensor;
    }
  }
  if (!example.x.defined()) fail("golden", "an input that maps to x", file.path);
}

/// `known`: the leaves, and the outputs of earlier steps as "out.NAME".
Case prepare(const GoldenFile& file, const GoldenStep& step, const Tensors& known, at::ScalarType type) {
  Case example;
  example.instance = step.instance;
  example.grid = step.grid;
  example.prefix = step.prefix;
  place_inputs(file, step, known, example);
  example.weights = initialize(*step.instance, at::TensorOptions().dtype(type), generator_of(0));
  const auto& declared = step.instance->weights();
  for (const auto& [name, target] : step.weights) {
    for (size_t i = 0; i < declared.size(); ++i) {
      if (target.kind != Target::Kind::weight || declared[i].name != target.name) continue;
      const at::Tensor& leaf = known.at("param." + name);
      if (leaf.numel() != example.weights[i].numel()) {
        fail("golden", "param." + name + " with the entries of " + shape_text(declared[i].shape),
             shape_text(leaf.sizes()));
      }
      example.weights[i] = leaf.reshape(declared[i].shape);
    }
  }
  retie(example);
  return example;
}

std::vector<int64_t> without_ones(at::IntArrayRef shape) {
  std::vector<int64_t> result;
  std::copy_if(shape.begin(), shape.end(), std::back_inserter(result), [](int64_t size) { return size != 1; });
  return result;
}

// Ours in the file's shape: the same; tokens as a map or as rows (b, n); axes of length 1 apart. Undefined when it has
// no such form.
at::Tensor conform(const at::Tensor& ours, at::IntArrayRef shape) {
  if (ours.sizes() == shape) return ours;
  if (ours.dim() == 3 && shape.size() == 4 && ours.numel() == c10::multiply_integers(shape)) {
    if (ours.size(2) == shape[1]) return ours.transpose(1, 2).reshape(shape);
    if (ours.size(2) == shape[3]) return ours.reshape(shape);
  }
  const bool rows = ours.dim() == 3 && shape.size() == 2 && ours.size(0) * ours.size(1) == shape[0];
  if (rows && ours.size(2) == shape[1]) return ours.reshape(shape);
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

// The sum over the steps of sum(out * w), w in the shape of the file's output: "w.NAME" weighs out.NAME, "w" the main
// output of the last step. Outputs marked so are added as they are.
at::Tensor loss_of(const GoldenFile& file, const GoldenCase& mapped, const std::vector<Tensors>& outputs,
                   at::ScalarType type) {
  at::Tensor loss;
  const auto add = [&](const at::Tensor& term) { loss = loss.defined() ? loss + term : term; };
  for (size_t i = 0; i < mapped.steps.size(); ++i) {
    for (const auto& [name, target] : mapped.steps[i].outputs) {
      if (!outputs[i].count(name)) continue;
      const bool main = target.kind == Target::Kind::main && i + 1 == mapped.steps.size();
      const auto own = file.tensors.find("w." + name), shared = file.tensors.find("w");
      const auto w = own != file.tensors.end() ? own : main ? shared : file.tensors.end();
      if (w == file.tensors.end()) {
        if (target.added) add(outputs[i].at(name).sum());
        continue;
      }
      const at::Tensor ours = conform(outputs[i].at(name), w->second.sizes());
      if (ours.defined()) add((ours * w->second.to(type)).sum());
    }
  }
  return loss;
}

// Whether some step read the leaf: others are reported as unmatched, or ignored.
bool read(const GoldenCase& mapped, const std::string& leaf) {
  return std::any_of(mapped.steps.begin(), mapped.steps.end(), [&](const GoldenStep& step) {
    const bool weight = leaf.rfind("param.", 0) == 0;
    const auto& targets = weight ? step.weights : step.inputs;
    const auto found = targets.find(weight ? leaf.substr(6) : leaf);
    return found != targets.end() && found->second.placed();
  });
}

void compare_gradients(const GoldenFile& file, const GoldenCase& mapped, const Tensors& leaves,
                       const std::vector<Tensors>& outputs, GoldenRun& run, const Bounds& bounds) {
  const Tensors expected = file.under("grad.");
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
    if (!leaves.count(name) || !read(mapped, name)) continue;
    names.push_back(name);
    tensors.push_back(leaves.at(name));
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

Tensors outputs_of(const GoldenStep& step, Case example, const std::string& path) {
  for (const auto& [name, target] : step.outputs) {
    const auto& list = example.outputs;
    const bool new_one = std::find(list.begin(), list.end(), target.name) == list.end();
    if (target.kind == Target::Kind::output && new_one) example.outputs.push_back(target.name);
  }
  const std::vector<at::Tensor> results = call_all(example, path);
  Tensors outputs;
  for (const auto& [name, target] : step.outputs) {
    if (target.kind == Target::Kind::main) outputs[name] = results.front();
    for (size_t i = 0; i < example.outputs.size(); ++i) {
      if (target.kind == Target::Kind::output && example.outputs[i] == target.name) outputs[name] = results[i + 1];
    }
  }
  return outputs;
}

}  // namespace

GoldenRun run_golden_case(const GoldenFile& file, const GoldenCase& mapped, const std::string& path,
                          at::ScalarType type, const Bounds& bounds) {
  const c10::AutoGradMode grad(true);
  GoldenRun run;
  run.path = path;
  run.type = type;
  const Tensors leaves = leaves_of(file, type);
  Tensors known = leaves;
  PathCounts counts;
  std::vector<Tensors> outputs;
  bool compared = false;
  run.ran = true;
  run.passed = true;
  for (const GoldenStep& step : mapped.steps) {
    const Case example = prepare(file, step, known, type);
    const PathCounts before = counts_now();
    call(example, path);  // alone: a weight matrix asked for beside it is always composite
    for (const auto& [op, paths] : since(before)) {
      for (const auto& [name, count] : paths) counts[op][name] += count;
    }
    outputs.push_back(outputs_of(step, example, path));
    for (const auto& [name, ours] : outputs.back()) {
      const std::string full = "out." + name;
      run.tensors.push_back(compare(full, file.tensors.at(full), ours, bounds.of(full), 0));
      known[full] = ours;
      compared = true;
    }
  }
  compare_gradients(file, mapped, leaves, outputs, run, bounds);
  if (!compared) run.reason = "the file has no output that maps to ours";
  if (counts.count("attention") && !ran_only(counts, "attention", path)) {
    run.reason = "the " + path + " path was asked for; ran: " + text_of(counts);
  }
  run.passed = run.passed && run.reason.empty();
  for (const Comparison& comparison : run.tensors) run.passed = run.passed && comparison.passed;
  return run;
}

Bounds float32_bounds(const GoldenFile& file, const GoldenCase& mapped, const Bounds& stated) {
  constexpr double headroom = 4;  // another order of summation
  Bounds bounds = stated;
  const GoldenRun composite = run_golden_case(file, mapped, "composite", at::kFloat, bounds);
  for (const Comparison& c : composite.tensors) {
    // An error over a magnitude of zero says nothing of rounding; neither does a wrong shape.
    if (c.reason.empty() && std::isfinite(c.error))
      bounds.own[c.name] = std::max(bounds.own[c.name], headroom * c.error);
  }
  return bounds;
}

}  // namespace regard::checking
