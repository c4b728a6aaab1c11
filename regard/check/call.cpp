#include "regard/check/call.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/check/difference.h"
#include "regard/ops/executor.h"
#include "regard/ops/paths.h"

namespace regard::checking {

std::string message_of(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const c10::Error*>(&exception)) return error->what_without_backtrace();
  return exception.what();
}

void refusing(const std::function<void()>& body) {
  try {
    body();
  } catch (const Refusal&) {
    throw;
  } catch (const Error& error) {
    throw Refusal(error.what());
  } catch (const c10::ValueError& error) {
    throw Refusal(error.what_without_backtrace());
  }
}

Context context_of(const Case& example, const std::string& path) {
  Context context;
  context.path = path;
  for (const int64_t size : example.grid) context.grid.emplace_back(size);
  context.prefix = example.prefix;
  context.inputs = example.inputs;
  context.wanted = example.outputs;
  context.training = example.training;
  context.seed = example.seed;
  context.executor = make_executor(example.executor);
  return context;
}

std::vector<at::Tensor> call_all(const Case& example, const std::string& path) {
  std::vector<at::Tensor> result;
  refusing([&] { result = run(*example.instance, example.weights, example.x, context_of(example, path)); });
  return result;
}

std::string refusal_of(const Case& example, const std::string& path, const std::string& executor) {
  c10::AutoGradMode grad(false);
  Case elsewhere = example;
  elsewhere.executor = executor;
  try {
    bool asked = false;
    refusing([&] {
      Context context = context_of(elsewhere, path);
      elsewhere.instance->forward(elsewhere.weights, elsewhere.x, context);
      asked = context.executor && context.executor->asked > 0;
    });
    return asked ? "" : "it asks nothing of the executor: no attention, total or gather through its context";
  } catch (const Refusal& refusal) {
    return refusal.what();
  }
}

at::Tensor call(const Case& example, const std::string& path) { return call_all(example, path).front(); }

std::vector<Leaf> leaves(Case& example) {
  std::vector<Leaf> result;
  if (example.x.is_floating_point()) result.push_back({"x", &example.x});
  for (auto& [name, tensor] : example.inputs) {
    if (tensor.is_floating_point()) result.push_back({"input." + name, &tensor});
  }
  const auto& declared = example.instance->weights();
  for (size_t i = 0; i < example.weights.size(); ++i) {
    if (declared[i].buffer || !declared[i].alias.empty() || !example.weights[i].is_floating_point()) continue;
    result.push_back({"weight." + declared[i].name, &example.weights[i]});
  }
  return result;
}

void retie(Case& example) {
  const auto& declared = example.instance->weights();
  for (size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].alias.empty()) continue;
    for (size_t j = 0; j < declared.size(); ++j) {
      if (declared[j].name == declared[i].alias) example.weights[i] = example.weights[j];
    }
  }
}

Case differentiable(const Case& example) {
  Case copy = example;
  for (const Leaf& leaf : leaves(copy)) *leaf.place = leaf.place->detach().clone().requires_grad_(true);
  retie(copy);
  return copy;
}

std::vector<at::Tensor> gradients(const at::Tensor& loss, const std::vector<at::Tensor>& tensors, bool create_graph) {
  std::vector<at::Tensor> result;
  if (loss.requires_grad()) {
    result =
        torch::autograd::grad({loss}, tensors, {}, /*retain_graph=*/create_graph, create_graph, /*allow_unused=*/true);
  }
  result.resize(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!result[i].defined()) result[i] = at::zeros_like(tensors[i]);
  }
  return result;
}

at::Tensor projection(const at::Tensor& output) {
  const at::Tensor w = normal(output.sizes(), generator_of(977)).to(output.scalar_type());
  return (output * w).sum();
}

Evaluation evaluate(const Case& example, const std::string& path) {
  return evaluate(example, [&](const Case& c) { return call(c, path); });
}

double scale_of(const Evaluation& reference, size_t leaf) {
  return std::max(magnitude(reference.gradients[leaf]), 1e-3 * reference.largest_gradient);
}

Evaluation evaluate(const Case& example, const std::function<at::Tensor(const Case&)>& make) {
  c10::AutoGradMode grad(true);
  Case copy = differentiable(example);
  Evaluation result;
  std::vector<at::Tensor> tensors;
  for (const Leaf& leaf : leaves(copy)) {
    result.names.push_back(leaf.name);
    tensors.push_back(*leaf.place);
  }
  const at::Tensor output = make(copy);
  result.output = output.detach();
  // A scalar is a loss already.
  refusing([&] { result.gradients = gradients(output.dim() ? projection(output) : output.sum(), tensors); });
  for (const at::Tensor& gradient : result.gradients) {
    result.largest_gradient = std::max(result.largest_gradient, magnitude(gradient));
  }
  return result;
}

PathCounts counts_now() {
  PathCounts counts;
  const nlohmann::json table = nlohmann::json::parse(regard::path_counts());
  for (const auto& [name, paths] : table.items()) {
    for (const auto& [path, count] : paths.items()) counts[name][path] = count.get<int64_t>();
  }
  return counts;
}

PathCounts since(const PathCounts& before) {
  PathCounts counts;
  for (const auto& [op, paths] : counts_now()) {
    for (const auto& [path, count] : paths) {
      int64_t old = 0;
      if (const auto found = before.find(op); found != before.end()) {
        if (const auto entry = found->second.find(path); entry != found->second.end()) old = entry->second;
      }
      if (count != old) counts[op][path] = count - old;
    }
  }
  return counts;
}

bool ran_only(const PathCounts& counts, const std::string& op, const std::string& path) {
  const auto found = counts.find(op);
  return found != counts.end() && found->second.size() == 1 && found->second.count(path) == 1;
}

std::string text_of(const PathCounts& counts) {
  std::string text;
  for (const auto& [op, paths] : counts) {
    for (const auto& [path, count] : paths) {
      text += (text.empty() ? "" : ", ") + op + " " + path + " x" + std::to_string(count);
    }
  }
  return text.empty() ? "nothing" : text;
}

namespace {

// A mixer has an output for every token; of the others one whose number of outputs follows that of the tokens.
bool has_output_for_every_token(const Case& example) {
  if (example.instance->info().role == Role::mixer) return true;
  if (example.instance->info().role == Role::host || example.x.dim() != 3) return false;
  Case plain = example;
  plain.inputs.clear();
  for (const int64_t tokens : {5, 7}) {
    try {
      const at::Tensor output = call(plain.stretched(tokens, 3), "composite");
      if (output.dim() != 3 || output.size(1) != tokens) return false;
    } catch (const std::exception&) {
      return false;
    }
  }
  return true;
}

}  // namespace

void attach_paths(Case& example) {
  c10::AutoGradMode grad(false);
  example.per_token = has_output_for_every_token(example);
  const PathCounts before = counts_now();
  call(example, "composite");
  example.attends = since(before).count("attention") != 0;
  if (!example.attends) {
    example.paths = {"auto"};
    return;
  }
  example.paths = {"composite"};
  for (const char* path : {"stripe", "fused"}) {
    try {
      call(example, path);
      example.paths.push_back(path);
    } catch (const Refusal& refusal) {
      example.refused_paths[path] = refusal.what();
    }
  }
}

}  // namespace regard::checking
