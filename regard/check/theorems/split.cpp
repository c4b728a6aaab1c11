// Keys absorbed in parts and merged give what they give at once.

#include <algorithm>

#include "regard/check/call.h"
#include "regard/check/theorem.h"
#include "regard/ops/executor.h"

namespace regard::checking {
namespace {

bool registered(const std::string& name) {
  const auto all = executors();
  return std::any_of(all.begin(), all.end(), [&](const ExecutorInfo& info) { return info.name == name; });
}

// "split" in two, in a random number of parts, and in more parts than there are keys; "split:3" as it stands.
std::vector<std::string> texts(const Case& example) {
  std::vector<std::string> result;
  const int64_t tokens = example.tokens();
  for (const std::string& name : example.executors) {
    if (name.find(':') != std::string::npos) {
      result.push_back(name);
      continue;
    }
    at::Generator generator = generator_of(static_cast<uint64_t>(example.x.numel()));
    const auto random = at::randint(2, std::max<int64_t>(3, tokens), {1}, generator, at::kLong).item<int64_t>();
    for (const int64_t parts : {int64_t{2}, random, tokens + 1}) {
      const std::string text = name + ":" + std::to_string(parts);
      if (parts > 1 && std::find(result.begin(), result.end(), text) == result.end()) result.push_back(text);
    }
  }
  return result;
}

class Split final : public Theorem {
 public:
  const char* name() const override { return "split"; }
  const char* statement() const override { return "keys absorbed in parts and merged give what they give at once"; }
  double tolerance() const override { return 1e-11; }  // rounding of the merge
  std::string excuse(const Subject& subject) const override {
    for (const std::string& text : subject.cases.front().executors) {
      const std::string name = text.substr(0, text.find(':'));
      if (!registered(name)) return "no executor '" + name + "' is registered";
    }
    return "";
  }
  bool wants(const Case& example) const override { return example.x.dim() == 3 && example.tokens() <= 7; }

  void run(const Case& example, Findings& findings) const override {
    const std::string& path = example.paths.front();
    findings.at(example, path);
    const std::vector<std::string> all = texts(example);
    if (const std::string reason = refusal_of(example, path, all.front()); !reason.empty())
      return findings.refuse(reason);
    const Evaluation whole = evaluate(example, path);
    for (const std::string& text : all) {
      Case parted = example;
      parted.executor = text;
      findings.at(parted, path);
      const Evaluation parts = evaluate(parted, path);
      findings.compare("output of " + text + " equals the whole's", whole.output, parts.output);
      for (size_t i = 0; i < parts.gradients.size(); ++i) {
        findings.compare("gradient of " + parts.names[i] + " of " + text + " equals the whole's", whole.gradients[i],
                         parts.gradients[i], scale_of(whole, i));
      }
      findings.at(example, path);
    }
  }
};

}  // namespace

std::unique_ptr<Theorem> split() { return std::make_unique<Split>(); }

}  // namespace regard::checking
