// Autograd against central finite differences: first order, second order, forward mode.

#include <ATen/ops/_make_dual.h>
#include <ATen/ops/_unpack_dual.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "regard/check/call.h"
#include "regard/check/theorem.h"

namespace regard::checking {
namespace {

// The five-point rule below errs by h^4 times a fifth derivative, which grows with the length of the direction (some
// hundred entries), and by 1e-16 / h: both below 1e-8 here. Smaller steps follow for a function that has a kink (a
// maximum) or a jump (a sign) within the first.
constexpr double kSteps[] = {3e-4, 3e-5, 3e-6, 3e-7};
constexpr double kTolerance = 1e-6;
constexpr double kGood = 1e-7;  // no smaller step is tried
// A derivative much smaller than the case's largest is measured against that one: it may be zero but for rounding.
constexpr double kFloor = 1e-3;

using Function = std::function<double(const Case&)>;

// d/dt f(theta + t d) at 0 = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h) + O(h^4).
double slope(const Case& example, const std::vector<at::Tensor>& direction, double h, const Function& f) {
  const auto value = [&](double t) {
    Case moved = example;
    const std::vector<Leaf> places = leaves(moved);
    for (size_t i = 0; i < places.size(); ++i) {
      if (direction[i].defined()) *places[i].place = places[i].place->detach() + t * direction[i];
    }
    retie(moved);
    return f(moved);
  };
  return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h);
}

double dot(const std::vector<at::Tensor>& gradient, const std::vector<at::Tensor>& direction) {
  double sum = 0;
  for (size_t i = 0; i < gradient.size(); ++i) {
    if (direction[i].defined()) sum += (gradient[i].detach() * direction[i]).sum().item<double>();
  }
  return sum;
}

std::vector<at::Tensor> values(const std::vector<Leaf>& places) {
  std::vector<at::Tensor> result;
  for (const Leaf& leaf : places) result.push_back(*leaf.place);
  return result;
}

std::vector<at::Tensor> random_direction(const std::vector<Leaf>& places, uint64_t seed) {
  std::vector<at::Tensor> result;
  at::Generator generator = generator_of(seed);
  for (const Leaf& leaf : places) result.push_back(normal(leaf.place->sizes(), generator));
  return result;
}

std::vector<at::Tensor> only(const std::vector<at::Tensor>& direction, size_t index) {
  std::vector<at::Tensor> result(direction.size());
  result[index] = direction[index];
  return result;
}

// The largest derivative along one tensor's part of the direction: what zero is measured against.
double largest_part(const std::vector<at::Tensor>& gradient, const std::vector<at::Tensor>& direction) {
  double largest = 0;
  for (size_t i = 0; i < gradient.size(); ++i) largest = std::max(largest, std::abs(dot(gradient, only(direction, i))));
  return largest;
}

class Gradients final : public Theorem {
 public:
  const char* name() const override { return "gradients"; }
  const char* statement() const override {
    return "autograd equals finite differences: first and second order, and forward mode";
  }
  double tolerance() const override { return kTolerance; }
  std::string excuse(const Subject&) const override { return ""; }
  // Every kind of call, at the lengths that cost least.
  bool wants(const Case& example) const override { return example.x.dim() != 3 || example.tokens() <= 6; }

  void run(const Case& original, Findings& findings) const override {
    c10::AutoGradMode grad(true);
    for (const std::string& path : chosen(original)) {
      findings.at(original, path);
      Case example = differentiable(original);
      const std::vector<Leaf> places = leaves(example);
      const Function loss = [&](const Case& c) {
        const c10::AutoGradMode no_gradients(false);
        return projection(call(c, path)).item<double>();
      };
      const std::vector<at::Tensor> direction = random_direction(places, 7);
      const std::vector<at::Tensor> first =
          gradients(projection(call(example, path)), values(places), /*create_graph=*/true);
      compare_all("first", example, places, direction, first, largest_part(first, direction), loss, findings);
      check_forward_mode(example, places, direction, first, path, findings);
      try {
        check_second_order(example, places, direction, first, path, findings);
      } catch (const std::exception& exception) {
        if (!original.foreign()) throw;
        findings.note("second order is not available", message_of(exception));
      }
    }
  }

 private:
  // With inputs beside x the two ends, composite and fused: the theorem paths-agree has compared the others' gradients.
  static std::vector<std::string> chosen(const Case& example) {
    if (example.inputs.empty() || example.paths.size() < 3) return example.paths;
    return {example.paths.front(), example.paths.back()};
  }

  // Keeps the best step: a kink inside a step spoils its slope, never a smaller one's.
  static bool agree(const std::string& what, double derivative, double scale,
                    const std::function<double(double)>& numeric, Findings& findings) {
    double error = std::numeric_limits<double>::infinity(), found = 0;
    for (const double h : kSteps) {
      const double slope = numeric(h);
      const double size = std::max({std::abs(slope), std::abs(derivative), kFloor * scale, 1e-12});
      if (error <= std::abs(slope - derivative) / size) continue;
      error = std::abs(slope - derivative) / size;
      found = slope;
      if (error <= kGood) break;
    }
    return findings.compare(what, error, found, derivative);
  }

  // Along one random direction of all tensors together; tensor by tensor only to name the culprit.
  static void compare_all(const std::string& order, const Case& example, const std::vector<Leaf>& places,
                          const std::vector<at::Tensor>& direction, const std::vector<at::Tensor>& derivative,
                          double scale, const Function& f, Findings& findings) {
    const bool whole = agree(
        order + " derivative along all tensors", dot(derivative, direction), scale,
        [&](double h) { return slope(example, direction, h, f); }, findings);
    if (whole) return;
    for (size_t i = 0; i < places.size(); ++i) {
      const std::vector<at::Tensor> one = only(direction, i);
      agree(
          order + " derivative in " + places[i].name, dot(derivative, one), scale,
          [&](double h) { return slope(example, one, h, f); }, findings);
    }
  }

  // phi = <gradient, v> along a random v: its derivative along the direction is v^T H d.
  static void check_second_order(const Case& example, const std::vector<Leaf>& places,
                                 const std::vector<at::Tensor>& direction, const std::vector<at::Tensor>& first,
                                 const std::string& path, Findings& findings) {
    const std::vector<at::Tensor> v = random_direction(places, 8);
    const auto along = [&](const std::vector<at::Tensor>& gradient) {
      at::Tensor sum = at::zeros({}, at::kDouble);
      for (size_t i = 0; i < gradient.size(); ++i) sum = sum + (gradient[i] * v[i]).sum();
      return sum;
    };
    const Function slope_along_v = [&](const Case& c) {
      Case copy = differentiable(c);
      return along(gradients(projection(call(copy, path)), values(leaves(copy)))).item<double>();
    };
    const std::vector<at::Tensor> second = gradients(along(first), values(places));
    compare_all("second", example, places, direction, second, largest_part(first, direction), slope_along_v, findings);
  }

  // The Jacobian-vector product of forward mode against the gradient along the same direction.
  static void check_forward_mode(const Case& example, const std::vector<Leaf>& places,
                                 const std::vector<at::Tensor>& direction, const std::vector<at::Tensor>& first,
                                 const std::string& path, Findings& findings) {
    struct Level {
      uint64_t index = torch::autograd::ForwardADLevel::get_next_idx();
      ~Level() { torch::autograd::ForwardADLevel::release_idx(index); }
    } level;
    Case dual = example;
    const std::vector<Leaf> dual_places = leaves(dual);
    for (size_t i = 0; i < dual_places.size(); ++i) {
      *dual_places[i].place =
          at::_make_dual(places[i].place->detach(), direction[i], static_cast<int64_t>(level.index));
    }
    retie(dual);
    at::Tensor tangent;
    try {
      const at::Tensor output = projection(call(dual, path));
      tangent = std::get<1>(at::_unpack_dual(output, static_cast<int64_t>(level.index)));
    } catch (const std::exception& exception) {
      findings.note("forward mode is not available", message_of(exception));
      return;
    }
    const double expected = dot(first, direction);
    const double found = tangent.defined() ? tangent.item<double>() : 0;
    findings.compare("forward mode equals backward mode",
                     std::abs(found - expected) / std::max({std::abs(expected), std::abs(found),
                                                            kFloor * largest_part(first, direction), 1e-12}),
                     expected, found);
  }
};

}  // namespace

std::unique_ptr<Theorem> gradients_theorem() { return std::make_unique<Gradients>(); }

}  // namespace regard::checking
