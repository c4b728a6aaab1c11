// float32 and bfloat16 err no more than their roundings allow, and every path errs like the composite.

#include <algorithm>
#include <cmath>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

struct Type {
  at::ScalarType type;
  const char* name;
  double roundoff;  ///< u: half the distance from 1 to the next number
};
const Type kTypes[] = {{at::kFloat, "float32", std::ldexp(1.0, -24)}, {at::kBFloat16, "bfloat16", std::ldexp(1.0, -8)}};

// Two bits: the same number of roundings in another order. A path that loses more keeps its sums in the wrong type.
constexpr double kRoom = 4;

at::Tensor cast(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.is_floating_point() ? tensor.to(type) : tensor;
}

Case cast(const Case& example, at::ScalarType type) {
  Case copy = example.with_x(cast(example.x, type));
  for (auto& [name, tensor] : copy.inputs) tensor = cast(tensor, type);
  for (at::Tensor& weight : copy.weights) weight = cast(weight, type);
  retie(copy);
  return copy;
}

// Every entry times 1 +- u, as one rounding may change it.
Case nudged(const Case& example, double u, uint64_t seed) {
  at::Generator generator = generator_of(seed);
  Case copy = example;
  for (const Leaf& leaf : leaves(copy))
    *leaf.place = *leaf.place * (1 + u * normal(leaf.place->sizes(), generator).sign());
  retie(copy);
  return copy;
}

// Output and gradients, of a projection whose weights are the same numbers in every type.
std::vector<at::Tensor> measure(const Case& example, const std::string& path, at::ScalarType rounding) {
  at::Tensor kept;
  Evaluation evaluation = evaluate(example, [&](const Case& c) {
    const at::Tensor output = call(c, path);
    kept = output.detach();
    const at::Tensor w = normal(output.sizes(), generator_of(977)).to(rounding).to(output.scalar_type());
    return (output * w).sum();
  });
  std::vector<at::Tensor> all = {kept};
  all.insert(all.end(), evaluation.gradients.begin(), evaluation.gradients.end());
  return all;
}

// Of the output over its largest entry; of the gradients over the largest of all, because one that is small by
// cancellation carries the roundings of the terms that cancel.
std::vector<double> errors(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& found) {
  double largest = 0;
  for (size_t i = 1; i < expected.size(); ++i) largest = std::max(largest, magnitude(expected[i]));
  std::vector<double> result;
  for (size_t i = 0; i < expected.size(); ++i)
    result.push_back(difference(expected[i], found[i], i ? largest : magnitude(expected[i])).error);
  return result;
}

// A sum of n terms errs by up to n roundings; the longest sums run over tokens and over the width.
double terms(const Case& example) {
  double n = 0;
  for (int64_t d = 1; d < example.x.dim(); ++d) n += static_cast<double>(example.x.size(d));
  return n;
}

class Dtypes final : public Theorem {
 public:
  const char* name() const override { return "dtypes"; }
  const char* statement() const override {
    return "float32 and bfloat16 err within their roundings, other paths like the composite";
  }
  double tolerance() const override { return 1; }  // in units of the budget, which is measured
  std::string excuse(const Subject&) const override { return ""; }
  bool wants(const Case& example) const override {
    return example.largest || (!example.inputs.empty() && example.tokens() <= 6);
  }

  void run(const Case& example, Findings& findings) const override {
    for (const Type& type : kTypes) {
      findings.at(example, example.paths.front());
      try {
        in_type(example, type, findings);
      } catch (const Refusal& refusal) {
        findings.note(std::string(type.name) + " is refused", refusal.what());
      } catch (const c10::NotImplementedError& error) {
        findings.note(std::string(type.name) + " is not available", message_of(error));
      }
    }
  }

 private:
  static void in_type(const Case& example, const Type& type, Findings& findings) {
    const std::string& base = example.paths.front();  // composite, or the only one
    const Case low = cast(example, type.type), exact = cast(low, at::kDouble);
    const std::vector<at::Tensor> reference = measure(exact, base, type.type);
    // What one rounding of every input changes in exact arithmetic; and as many as a sum has, which may take a ReLU or
    // a sign across its jump.
    const std::vector<double> one = moved(exact, base, type, type.roundoff, reference);
    const std::vector<double> many = moved(exact, base, type, terms(example) * type.roundoff, reference);
    std::vector<double> own;
    const std::vector<std::string> names = names_of(example);
    for (const std::string& path : example.paths) {
      findings.at(example, path);
      const std::vector<at::Tensor> found = measure(low, path, type.type);
      findings.claim(std::string(type.name) + " in, " + type.name + " out", found.front().scalar_type() == type.type);
      const std::vector<double> error = errors(reference, found);
      if (own.empty()) own = worst_gradient_for_all(unlucky(exact, base, type, error));
      for (size_t i = 0; i < error.size(); ++i) {
        const bool first = path == base;
        const double budget = first ? std::max(terms(example) * one[i], many[i]) : kRoom * std::max(own[i], one[i]);
        findings.compare(
            names[i] + " in " + type.name + (first ? " errs within its roundings" : " errs like the composite"),
            error[i] / budget, budget, error[i]);
      }
    }
  }

  // The errors of the composite, the largest of this case and of two beside it: where scores are nearly alike, how one
  // of them happens to be rounded makes its error ten times larger or smaller.
  static std::vector<double> unlucky(const Case& exact, const std::string& base, const Type& type,
                                     std::vector<double> most) {
    for (const uint64_t seed : {4, 5}) {
      const Case low = cast(nudged(exact, 2 * type.roundoff, seed), type.type);
      const auto error = errors(measure(cast(low, at::kDouble), base, type.type), measure(low, base, type.type));
      for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], error[i]);
    }
    return most;
  }

  // The largest change over three ways to move every input by +- amount, one rounding at least.
  static std::vector<double> moved(const Case& exact, const std::string& base, const Type& type, double amount,
                                   const std::vector<at::Tensor>& reference) {
    std::vector<double> most(reference.size(), type.roundoff);
    for (const uint64_t seed : {1, 2, 3}) {
      const auto change = errors(reference, measure(nudged(exact, amount, seed), base, type.type));
      for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], change[i]);
    }
    return most;
  }

  // Gradients are all measured against the largest, so the composite's worst stands for each of them.
  static std::vector<double> worst_gradient_for_all(std::vector<double> errors) {
    if (errors.size() > 1)
      std::fill(errors.begin() + 1, errors.end(), *std::max_element(errors.begin() + 1, errors.end()));
    return errors;
  }

  static std::vector<std::string> names_of(const Case& example) {
    Case copy = example;
    std::vector<std::string> names = {"output"};
    for (const Leaf& leaf : leaves(copy)) names.push_back("gradient of " + leaf.name);
    return names;
  }
};

}  // namespace

std::unique_ptr<Theorem> dtypes() { return std::make_unique<Dtypes>(); }

}  // namespace regard::checking
