// fused = stripe = composite: every path gives the same output and the same gradients.

#include <algorithm>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

class PathsAgree final : public Theorem {
 public:
  const char* name() const override { return "paths-agree"; }
  const char* statement() const override {
    return "the fused, stripe and composite paths give one output and one gradient";
  }
  double tolerance() const override { return 1e-11; }
  std::string excuse(const Subject& subject) const override {
    return subject.attends() ? "" : "it runs no attention op, so it has one path";
  }
  bool wants(const Case& example) const override { return example.attends; }

  void run(const Case& example, Findings& findings) const override {
    findings.at(example, "composite");
    const Evaluation reference = evaluate(example, "composite");
    for (const std::string& path : example.paths) {
      if (path == "composite") continue;
      findings.at(example, path);
      const PathCounts before = counts_now();
      const Evaluation found = evaluate(example, path);
      const PathCounts ran = since(before);
      findings.claim("the path asked for is the path that runs (ran: " + text_of(ran) + ")",
                     ran_only(ran, "attention", path));
      findings.compare("output equals the composite's", reference.output, found.output);
      for (size_t i = 0; i < found.gradients.size(); ++i) {
        findings.compare("gradient of " + found.names[i] + " equals the composite's", reference.gradients[i],
                         found.gradients[i], scale_of(reference, i));
      }
    }
    for (const auto& [path, reason] : example.refused_paths) findings.note(path + " refused", reason);
  }
};

}  // namespace

std::unique_ptr<Theorem> paths_agree() { return std::make_unique<PathsAgree>(); }

}  // namespace regard::checking
