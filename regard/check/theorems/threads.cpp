// The number of threads never matters: bit by bit where Regard's kernels ran, else to rounding.

#include <ATen/Parallel.h>

#include <algorithm>

#include "regard/base/error.h"
#include "regard/check/call.h"
#include "regard/check/theorem.h"
#include "regard/nn/context.h"

namespace regard::checking {
namespace {

constexpr int kThreads = 3;
// Long enough that a row of scores is more than one tile, and torch's own loops more than one grain (32768 entries).
constexpr int64_t kTokens = 156;

template <class Body>
auto with_threads(int count, Body&& body) {
  struct Guard {
    int before = at::get_num_threads();
    ~Guard() { at::set_num_threads(before); }
  } guard;
  at::set_num_threads(count);
  return body();
}

class Threads final : public Theorem {
 public:
  const char* name() const override { return "threads"; }
  const char* statement() const override {
    return "the number of threads never matters; bit by bit in Regard's kernels";
  }
  double tolerance() const override { return 1e-11; }  // rounding of torch's own products
  std::string excuse(const Subject&) const override { return ""; }
  bool wants(const Case& example) const override { return example.largest; }

  void run(const Case& original, Findings& findings) const override {
    const Case example = longer(original);
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      const Evaluation one = with_threads(1, [&] { return evaluate(example, path); });
      const Evaluation many = with_threads(kThreads, [&] { return evaluate(example, path); });
      bool exact = at::equal(one.output, many.output);
      findings.compare("output on " + std::to_string(kThreads) + " threads equals that on one", one.output,
                       many.output);
      for (size_t i = 0; i < one.gradients.size(); ++i) {
        exact = exact && at::equal(one.gradients[i], many.gradients[i]);
        findings.compare(
            "gradient of " + one.names[i] + " on " + std::to_string(kThreads) + " threads equals that on one",
            one.gradients[i], many.gradients[i], scale_of(one, i));
      }
      findings.note(exact ? "whole: bit by bit" : "whole: to rounding (torch's own sums change with threads)");
      if (path == "fused") kernel(example, findings);
    }
  }

 private:
  // A mechanism of fixed length is checked at that length.
  static Case longer(const Case& example) {
    if (example.x.dim() != 3) return example;
    const Case longer = example.stretched(kTokens, 71);
    try {
      c10::AutoGradMode grad(false);
      call(longer, example.paths.front());
      return longer;
    } catch (const Refusal&) {
      return example;
    }
  }

  // The attention that the mechanism ran last, alone: the same operands, so that its bits must be the same.
  static void kernel(const Case& example, Findings& findings) {
    Context context = context_of(example, "fused");
    std::optional<Attending> attended;
    try {
      c10::AutoGradMode grad(false);
      example.instance->forward(example.weights, example.x, context);
      attended = context.attended();
    } catch (const Error&) {
      return;  // it attends outside of its context
    }
    const auto run = [&] {
      c10::AutoGradMode grad(true);
      std::vector<at::Tensor> operands = {attended->q, attended->k, attended->v};
      for (at::Tensor& t : operands) t = t.detach().requires_grad_(true);
      const at::Tensor o = attention(operands[0], operands[1], operands[2], attended->spec, attended->arguments).o;
      std::vector<at::Tensor> result = gradients(projection(o), operands);
      result.push_back(o.detach());
      return result;
    };
    const auto one = with_threads(1, run), many = with_threads(kThreads, run);
    const char* names[] = {"gradient of q", "gradient of k", "gradient of v", "output"};
    for (size_t i = 0; i < one.size(); ++i) {
      findings.claim(std::string(names[i]) + " of the fused kernel has the same bits on " + std::to_string(kThreads) +
                         " threads as on one",
                     at::equal(one[i], many[i]));
    }
    findings.note("fused kernel: bit by bit");
  }
};

}  // namespace

std::unique_ptr<Theorem> threads() { return std::make_unique<Threads>(); }

}  // namespace regard::checking
