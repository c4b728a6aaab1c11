// No leak from the future: token t of a causal mechanism does not depend on tokens after t.

#include <limits>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

// Rounding of torch's own products, which may depend on what else is in the batch; Regard's kernels give exactly 0.
constexpr double kRounding = 1e-12;

// Where the past ends: after the first token, in the middle, before the last.
std::vector<int64_t> cuts(int64_t tokens) {
  std::vector<int64_t> result;
  for (const int64_t cut : {int64_t{1}, tokens / 2, tokens - 1}) {
    if (cut >= 1 && cut < tokens && (result.empty() || result.back() < cut)) result.push_back(cut);
  }
  return result;
}

at::Tensor with_future(const at::Tensor& x, int64_t cut, const at::Tensor& future) {
  return at::cat({x.slice(1, 0, cut), future.expand_as(x.slice(1, cut))}, 1);
}

class Causality final : public Theorem {
 public:
  const char* name() const override { return "causality"; }
  const char* statement() const override { return "no output of a causal mechanism depends on a later token"; }
  double tolerance() const override { return kRounding; }
  std::string excuse(const Subject& subject) const override {
    if (subject.info->role != Role::mixer) return "it is no mixer, so its outputs have no order";
    for (const Case& example : subject.cases) {
      if (wants(example)) return "";
    }
    return "no configuration is causal";
  }
  bool wants(const Case& example) const override {
    return example.causal && !example.has("memory") && example.tokens() > 1;
  }

  void run(const Case& example, Findings& findings) const override {
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      const at::Tensor whole = call(example, path);
      for (const int64_t cut : cuts(example.tokens())) {
        perturb(example, path, whole, cut, findings);
        differentiate(example, path, cut, findings);
        // Of the house's own mechanisms this is the theorem cache: some say that they count all keys, and keep none.
        if (example.foreign()) shorten(example, path, whole, cut, findings);
      }
    }
  }

 private:
  static void perturb(const Case& example, const std::string& path, const at::Tensor& whole, int64_t cut,
                      Findings& findings) {
    const at::Tensor later = example.x.slice(1, cut);
    const at::Tensor past = whole.slice(1, 0, cut);
    const auto options = example.x.options();
    const std::pair<const char*, at::Tensor> futures[] = {
        {"other tokens", normal(later.sizes(), generator_of(31))},
        {"huge tokens", at::full({1}, 1e30, options)},
        {"NaN", at::full({1}, std::numeric_limits<double>::quiet_NaN(), options)}};
    for (const auto& [label, future] : futures) {
      const at::Tensor changed = call(example.with_x(with_future(example.x, cut, future)), path);
      if (example.foreign() && label == std::string("NaN")) {
        const bool reaches = !finite(changed.slice(1, 0, cut));
        findings.note(reaches ? "NaN in the future reaches the past (0 * NaN)" : "NaN in the future reaches nothing");
        continue;
      }
      findings.compare("outputs before token " + std::to_string(cut) + " stay when " + label + " follow", past,
                       changed.slice(1, 0, cut));
    }
  }

  static void shorten(const Case& example, const std::string& path, const at::Tensor& whole, int64_t cut,
                      Findings& findings) {
    findings.compare("outputs before token " + std::to_string(cut) + " stay when no token follows",
                     whole.slice(1, 0, cut), call(example.with_x(example.x.slice(1, 0, cut)), path));
  }

  static void differentiate(const Case& example, const std::string& path, int64_t cut, Findings& findings) {
    c10::AutoGradMode grad(true);
    const at::Tensor x = example.x.detach().clone().requires_grad_(true);
    const at::Tensor past = call(example.with_x(x), path).slice(1, 0, cut);
    const at::Tensor gradient = gradients(projection(past), {x}).front();
    const at::Tensor leak = gradient.slice(1, cut);
    findings.compare("gradient of outputs before token " + std::to_string(cut) + " in later tokens is zero",
                     at::zeros_like(leak), leak, magnitude(gradient));
  }
};

}  // namespace

std::unique_ptr<Theorem> causality() { return std::make_unique<Causality>(); }

}  // namespace regard::checking
