// The content of padding never matters, and a padded row is computed as if its hidden tokens did not exist.

#include <algorithm>
#include <limits>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

struct Side {
  std::string lengths;  // "lengths"
  std::string tensor;   // "x"
};

// (B, L, 1), true at padding.
at::Tensor padding_mask(const Case& example, const Side& side) {
  const at::Tensor& lengths = example.inputs.at(side.lengths);
  return (at::arange(example.tensor(side.tensor).size(1)).unsqueeze(0) >= lengths.unsqueeze(1)).unsqueeze(-1);
}

// The outputs that are asked for: all of a pool, a mixer's at real tokens.
at::Tensor visible(const Case& example, const at::Tensor& output) {
  if (!example.per_token || !example.has("lengths")) return output;
  return at::where(padding_mask(example, {"lengths", "x"}), at::zeros({}, output.options()), output);
}

class Padding final : public Theorem {
 public:
  const char* name() const override { return "padding"; }
  const char* statement() const override { return "padding never matters, whatever it holds; padded equals unpadded"; }
  double tolerance() const override { return 1e-12; }  // rounding of torch's own products
  std::string excuse(const Subject& subject) const override {
    return subject.has_input("lengths") || subject.has_input("memory_lengths") ? "" : "it takes no lengths";
  }
  bool wants(const Case& example) const override { return !example.padded().empty(); }

  void run(const Case& example, Findings& findings) const override {
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      for (const auto& [lengths, tensor] : example.padded()) {
        fill(example, {lengths, tensor}, path, findings);
        unpadded(example, {lengths, tensor}, path, findings);
      }
    }
  }

 private:
  static void fill(const Case& example, const Side& side, const std::string& path, Findings& findings) {
    const at::Tensor& own = example.tensor(side.tensor);
    const std::pair<const char*, at::Tensor> contents[] = {
        {"other tokens", normal(own.sizes(), generator_of(53))},
        {"huge tokens", at::full({}, 1e30, own.options())},
        {"NaN", at::full({}, std::numeric_limits<double>::quiet_NaN(), own.options())}};
    const at::Tensor whole = visible(example, call(example, path));
    const std::vector<at::Tensor> reference = visible_gradients(example, path);
    for (const auto& [label, content] : contents) {
      const std::string when = "padding of " + side.tensor + " holds " + label;
      const Case filled = example.with_tensor(side.tensor, at::where(padding_mask(example, side), content, own));
      const at::Tensor output = call(filled, path);
      if (example.foreign() && label == std::string("NaN")) {
        // 0 * NaN: to be expected where weights of zero multiply whatever the padding holds.
        findings.note(finite(visible(example, output)) ? "NaN in padding reaches nothing"
                                                       : "NaN in padding reaches outputs (0 * NaN)");
        continue;
      }
      findings.compare("outputs stay when " + when, whole, visible(example, output));
      findings.claim("every output is finite when " + when,
                     finite(example.foreign() ? visible(example, output) : output));
      compare_gradients(example, side, when, reference, visible_gradients(filled, path), findings);
    }
  }

  static std::vector<at::Tensor> visible_gradients(const Case& example, const std::string& path) {
    c10::AutoGradMode grad(true);
    Case copy = differentiable(example);
    std::vector<at::Tensor> tensors;
    for (const Leaf& leaf : leaves(copy)) tensors.push_back(*leaf.place);
    return gradients(projection(visible(copy, call(copy, path))), tensors);
  }

  static void compare_gradients(const Case& example, const Side& side, const std::string& when,
                                const std::vector<at::Tensor>& reference, const std::vector<at::Tensor>& found,
                                Findings& findings) {
    Case named = example;
    const std::vector<Leaf> places = leaves(named);
    double largest = 0;
    for (const at::Tensor& gradient : reference) largest = std::max(largest, magnitude(gradient));
    for (size_t i = 0; i < reference.size(); ++i) {
      findings.compare("gradient of " + places[i].name + " stays when " + when, reference[i], found[i],
                       std::max(magnitude(reference[i]), 1e-3 * largest));
      if (places[i].name != (side.tensor == "x" ? "x" : "input." + side.tensor)) continue;
      const at::Tensor inside = at::where(padding_mask(example, side), found[i], at::zeros({}, found[i].options()));
      findings.compare("gradient in padding is zero", at::zeros_like(inside), inside, largest);
    }
  }

  // Each sample alone, cut to its length, without that input.
  static void unpadded(const Case& example, const Side& side, const std::string& path, Findings& findings) {
    if (example.grid.size() > 1) return;  // a grid of rows and columns cannot be cut
    const at::Tensor whole = visible(example, call(example, path));
    for (int64_t b = 0; b < example.batch(); ++b) {
      Case alone = example.rows(b, b + 1);
      const int64_t length = alone.inputs.at(side.lengths).item<int64_t>();
      if (length <= alone.prefix) continue;
      alone.inputs.erase(side.lengths);
      alone = alone.with_tensor(side.tensor, alone.tensor(side.tensor).slice(1, 0, length));
      if (side.tensor == "x" && !alone.grid.empty()) alone.grid[0] = length - alone.prefix;
      const at::Tensor found = visible(alone, call(alone, path));
      const at::Tensor row = whole.slice(0, b, b + 1);
      // A reducer keeps fewer of fewer tokens.
      const bool reduced = example.instance->info().role == Role::reducer && found.size(1) <= row.size(1);
      const bool cut = (example.per_token || reduced) && side.tensor == "x";
      findings.compare("padded sample " + std::to_string(b) + " equals the sample without padding", found,
                       cut ? row.slice(1, 0, found.size(1)) : row);
    }
  }
};

}  // namespace

std::unique_ptr<Theorem> padding() { return std::make_unique<Padding>(); }

}  // namespace regard::checking
