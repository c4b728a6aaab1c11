#pragma once

#include <c10/core/GradMode.h>

#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "regard/check/case.h"

namespace regard::checking {

/// A refusal of bad input (regard::Error, or the ValueError that it becomes in the dispatcher), as opposed to a crash.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Runs `body`; a refusal of bad input leaves it as Refusal, with torch's backtrace cut off.
void refusing(const std::function<void()>& body);

/// The message of any exception, without torch's backtrace.
std::string message_of(const std::exception& exception);

/// The mechanism's outputs, through torch.ops.regard.mechanism: the main one, then those of case.outputs.
std::vector<at::Tensor> call_all(const Case& example, const std::string& path);
at::Tensor call(const Case& example, const std::string& path);

/// "x", inputs and weights of floating type, named ("x", "input.memory", "weight.wq.weight").
struct Leaf {
  std::string name;
  at::Tensor* place;  ///< inside the case that was asked
};
std::vector<Leaf> leaves(Case& example);

/// A tied weight becomes the tensor that it is tied to, as it must after the leaves were replaced.
void retie(Case& example);

/// A copy of the case in which every leaf is detached and requires a gradient.
Case differentiable(const Case& example);

/// d loss / d leaf, zeros where the loss does not depend on it.
std::vector<at::Tensor> gradients(const at::Tensor& loss, const std::vector<at::Tensor>& tensors,
                                  bool create_graph = false);

/// sum(output * w) with a fixed random w of the output's shape.
at::Tensor projection(const at::Tensor& output);

struct Evaluation {
  at::Tensor output;
  std::vector<std::string> names;
  std::vector<at::Tensor> gradients;  ///< of projection(output), by leaf
  double largest_gradient = 0;
};
Evaluation evaluate(const Case& example, const std::string& path);
/// The same of what `output` makes of the case, whose leaves require gradients.
Evaluation evaluate(const Case& example, const std::function<at::Tensor(const Case&)>& output);

/// How the case is called, for one that runs it without the dispatcher (`instance->forward`).
Context context_of(const Case& example, const std::string& path);

/// Why the executor `text` cannot run this case: a refusal, or that the mechanism asks nothing of it. "" when it can.
std::string refusal_of(const Case& example, const std::string& path, const std::string& executor);

/// How often each path of each attention op ran: {"attention": {"fused": 3, ...}, "attention_backward": {...}}.
using PathCounts = std::map<std::string, std::map<std::string, int64_t>>;
PathCounts counts_now();
/// after - before, zero entries left out.
PathCounts since(const PathCounts& before);
/// True when `op` ran, and on no path but this one.
bool ran_only(const PathCounts& counts, const std::string& op, const std::string& path);
std::string text_of(const PathCounts& counts);

/// What a gradient's error is measured against: one that is zero but for rounding, against the case's largest.
double scale_of(const Evaluation& reference, size_t leaf);

/// Fills in which paths this call can take, by taking them.
void attach_paths(Case& example);

}  // namespace regard::checking
