// A row without keys gives a finite output and zero gradients, and disturbs no other row.

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

// The sample whose keys are taken away.
constexpr int64_t kEmpty = 1;

bool all_finite(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!finite(tensor)) return false;
  }
  return true;
}

at::Tensor without_row(const at::Tensor& tensor, int64_t row) {
  return at::cat({tensor.slice(0, 0, row), tensor.slice(0, row + 1)});
}

class EmptyRows final : public Theorem {
 public:
  const char* name() const override { return "empty-rows"; }
  const char* statement() const override {
    return "a row without keys gives a finite output and zero gradients, and disturbs no other";
  }
  double tolerance() const override { return 1e-12; }  // rounding of torch's own products
  std::string excuse(const Subject& subject) const override {
    for (const Case& example : subject.cases) {
      if (wants(example)) return "";
    }
    return "it takes no lengths and no masks, and its input has no token axis";
  }
  bool wants(const Case& example) const override {
    const bool plain = example.inputs.empty() && example.x.dim() == 3;
    return !example.padded().empty() || example.has("hidden") || example.has("key_hidden") || plain;
  }

  void run(const Case& example, Findings& findings) const override {
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      for (const auto& [lengths, tensor] : example.padded()) no_length(example, lengths, tensor, path, findings);
      if (example.has("hidden")) all_hidden(example, "hidden", path, findings);
      if (example.has("key_hidden")) all_hidden(example, "key_hidden", path, findings);
      if (example.inputs.empty() && example.x.dim() == 3) no_tokens(example, path, findings);
    }
  }

 private:
  static void no_length(const Case& example, const std::string& name, const std::string& tensor,
                        const std::string& path, Findings& findings) {
    at::Tensor lengths = example.inputs.at(name).clone();
    lengths[kEmpty] = 0;
    const Case empty = example.with_input(name, lengths);
    findings.at(empty, path);
    const Evaluation found = evaluate(empty, path);
    const std::string sample = "a sample whose " + name + " is 0";
    findings.claim("output of " + sample + " is finite", finite(found.output[kEmpty]));
    findings.claim("gradients beside " + sample + " are finite", all_finite(found.gradients));
    for (size_t i = 0; i < found.gradients.size(); ++i) {
      if (found.names[i] != (tensor == "x" ? "x" : "input." + tensor)) continue;
      const at::Tensor own = found.gradients[i][kEmpty];
      findings.compare("gradient in " + tensor + " of " + sample + " is zero", at::zeros_like(own), own,
                       found.largest_gradient);
    }
    findings.compare("the other samples stay beside " + sample, without_row(call(example, path), kEmpty),
                     without_row(found.output, kEmpty));
    findings.note(name + (magnitude(found.output[kEmpty]) == 0 ? " 0 gives zeros" : " 0 gives a finite constant"));
    findings.at(example, path);
  }

  // Query 1 (mask (M, N)) or sample 1 (mask (B, N)) loses every key.
  static void all_hidden(const Case& example, const std::string& mask, const std::string& path, Findings& findings) {
    if (example.inputs.at(mask).size(0) <= kEmpty) return;
    at::Tensor hidden = example.inputs.at(mask).clone();
    hidden[kEmpty].fill_(true);
    const Evaluation found = evaluate(example.with_input(mask, hidden), path);
    findings.claim("output is finite where " + mask + " hides every key", finite(found.output));
    findings.claim("gradients are finite where " + mask + " hides every key", all_finite(found.gradients));
    const int64_t axis = mask == "hidden" ? 1 : 0;
    if (found.output.dim() <= axis) return;
    const at::Tensor before = call(example, path);
    const int64_t rows = before.size(axis);
    const at::Tensor others = at::cat({at::arange(kEmpty), at::arange(kEmpty + 1, rows)});
    findings.compare("the other rows stay when " + mask + " hides every key of one", before.index_select(axis, others),
                     found.output.index_select(axis, others));
  }

  // Nothing at all: no samples; no tokens. A clear refusal is an answer too.
  static void no_tokens(const Case& example, const std::string& path, Findings& findings) {
    const auto answer = [&](const std::string& what, const Case& empty) {
      findings.at(empty, path);
      try {
        const Evaluation found = evaluate(empty, path);
        findings.claim("output without " + what + " is finite", finite(found.output));
        findings.claim("gradients without " + what + " are finite", all_finite(found.gradients));
        if (what == "tokens") findings.note("no tokens give an empty or finite answer");
      } catch (const Refusal& refusal) {
        findings.note("no " + what + " are refused", refusal.what());
      } catch (const std::exception& exception) {
        findings.claim("no " + what + " is answered or refused in clear words; raised: " + message_of(exception),
                       false);
      }
      findings.at(example, path);
    };
    answer("samples", example.rows(0, 0));
    if (example.instance->info().needs_prefix) return;
    Case empty = example.with_x(example.x.slice(1, 0, example.prefix));
    if (!empty.grid.empty()) empty.grid[0] = 0;
    answer("tokens", empty);
  }
};

}  // namespace

std::unique_ptr<Theorem> empty_rows() { return std::make_unique<EmptyRows>(); }

}  // namespace regard::checking
