// A forward that is recomputed for its backward gives the same outputs and gradients, random numbers replayed.

#include <ATen/Context.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "regard/base/error.h"
#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

// The same instance with every dropout on, where its configuration has one and takes it.
std::shared_ptr<const Instance> with_dropout(const Case& example) {
  nlohmann::json config = nlohmann::json::parse(example.instance->config());
  for (auto& [name, value] : config.items()) {
    if (name.find("drop") != std::string::npos && value.is_number_float()) value = 0.25;
  }
  try {
    return mechanism(example.instance->info().id).configure(config.dump());
  } catch (const Error&) {
    return example.instance;
  }
}

// Every output that this call can give beside the main one: declared outputs, published tensors, losses.
std::vector<std::string> extra_outputs(const Case& example, const std::string& path) {
  const Info& info = example.instance->info();
  std::vector<std::string> names, given;
  for (const Port& port : info.outputs) names.push_back(port.name);
  for (const Port& port : info.publishes) names.push_back(port.name);
  for (const Port& port : info.losses) names.push_back("loss." + port.name);
  c10::AutoGradMode grad(false);
  for (const std::string& name : names) {
    Case one = example;
    one.outputs = {name};
    try {
      if (call_all(one, path).back().is_floating_point()) given.push_back(name);
    } catch (const Refusal&) {
    }
  }
  return given;
}

at::Generator cpu_generator() { return at::globalContext().defaultGenerator(at::kCPU); }
void rewind(const at::Tensor& state) { cpu_generator().set_state(state); }

// What one training call gives, and its gradients.
struct Pass {
  std::vector<at::Tensor> outputs;
  std::vector<at::Tensor> gradients;
  std::vector<std::string> names;
  double largest = 0;
};

Pass differentiated(const Case& example, const std::string& path) {
  Pass pass;
  const Evaluation evaluation = evaluate(example, [&](const Case& c) {
    const std::vector<at::Tensor> outputs = call_all(c, path);
    at::Tensor loss = at::zeros({}, at::kDouble);
    for (const at::Tensor& output : outputs) {
      pass.outputs.push_back(output.detach());
      loss = loss + projection(output);
    }
    return loss;
  });
  pass.gradients = evaluation.gradients;
  pass.names = evaluation.names;
  pass.largest = evaluation.largest_gradient;
  return pass;
}

class Checkpointing final : public Theorem {
 public:
  const char* name() const override { return "checkpoint"; }
  const char* statement() const override {
    return "a forward recomputed for its backward gives the same outputs and gradients, seeds replayed";
  }
  double tolerance() const override { return 1e-12; }  // the same operations in the same order
  std::string excuse(const Subject&) const override { return ""; }
  bool wants(const Case& example) const override { return example.x.dim() != 3 || example.tokens() <= 6; }

  void run(const Case& original, Findings& findings) const override {
    Case example = original;
    example.training = true;
    example.instance = with_dropout(original);
    const std::string& path = example.paths.front();
    findings.at(example, path);
    example.outputs = extra_outputs(example, path);
    example.seed = at::scalar_tensor(20240607, at::kLong);
    // A module of torch's knows torch's generator alone.
    if (!example.foreign())
      replay(
          example, path, "a replayed seed", [] {}, findings);
    if (!example.foreign() && !example.inputs.empty()) return findings.at(original, path);  // shown without inputs
    example.seed = at::Tensor();
    const at::Tensor state = cpu_generator().get_state();
    replay(
        example, path, "torch's generator rewound", [&] { rewind(state); }, findings);
    rewind(state);
    findings.at(original, path);
  }

 private:
  // The plain call against the two halves of a checkpoint: a forward that keeps its inputs alone, then the recomputed
  // one with its backward.
  static void replay(const Case& example, const std::string& path, const std::string& how,
                     const std::function<void()>& restore, Findings& findings) {
    restore();
    const Pass plain = differentiated(example, path);
    restore();
    std::vector<at::Tensor> forward;
    {
      c10::AutoGradMode grad(false);
      forward = call_all(example, path);
    }
    restore();
    const Pass again = differentiated(example, path);
    for (size_t i = 0; i < forward.size(); ++i) {
      const std::string output = i == 0 ? "the output" : "output " + example.outputs[i - 1];
      findings.compare(output + " without gradients equals that with them, with " + how, plain.outputs[i], forward[i]);
      findings.compare(output + " computed again is the same, with " + how, plain.outputs[i], again.outputs[i]);
    }
    for (size_t i = 0; i < plain.gradients.size(); ++i) {
      findings.compare("gradient of " + plain.names[i] + " computed again is the same, with " + how, plain.gradients[i],
                       again.gradients[i], std::max(magnitude(plain.gradients[i]), 1e-3 * plain.largest));
    }
  }
};

}  // namespace

std::unique_ptr<Theorem> checkpointing() { return std::make_unique<Checkpointing>(); }

}  // namespace regard::checking
