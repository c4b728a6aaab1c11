// Batch-mates never matter.

#include <limits>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

class Batch final : public Theorem {
 public:
  const char* name() const override { return "batch"; }
  const char* statement() const override { return "a sample's output and gradient do not depend on its batch-mates"; }
  double tolerance() const override { return 1e-12; }  // rounding of torch's own products
  std::string excuse(const Subject& subject) const override {
    return subject.info->couples_batch ? "it declares that it couples the batch" : "";
  }
  bool wants(const Case& example) const override { return example.batch() > 1; }

  void run(const Case& example, Findings& findings) const override {
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      const at::Tensor together = call(example, path);
      for (int64_t b = 0; b < example.batch(); ++b) {
        findings.compare("sample " + std::to_string(b) + " alone equals the sample in its batch",
                         call(example.rows(b, b + 1), path), together.slice(0, b, b + 1));
      }
      at::Tensor poisoned = example.x.clone();
      poisoned.select(0, 0).fill_(std::numeric_limits<double>::quiet_NaN());
      findings.compare("NaN in sample 0 reaches no other sample", together.slice(0, 1),
                       call(example.with_x(poisoned), path).slice(0, 1));
      differentiate(example, path, findings);
    }
  }

 private:
  static void differentiate(const Case& example, const std::string& path, Findings& findings) {
    c10::AutoGradMode grad(true);
    const at::Tensor x = example.x.detach().clone().requires_grad_(true);
    const at::Tensor first = call(example.with_x(x), path).slice(0, 0, 1);
    const at::Tensor gradient = gradients(projection(first), {x}).front();
    const at::Tensor others = gradient.slice(0, 1);
    findings.compare("gradient of sample 0 in the other samples is zero", at::zeros_like(others), others,
                     magnitude(gradient));
  }
};

}  // namespace

std::unique_ptr<Theorem> batch_independence() { return std::make_unique<Batch>(); }

}  // namespace regard::checking
