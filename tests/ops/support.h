#pragma once

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>

#include <functional>
#include <string>
#include <vector>

#include "regard/base/error.h"
#include "regard/ops/attention.h"

namespace regard::testing {

using Tensors = std::vector<at::Tensor>;

/// Normal float64 numbers from a fixed generator, requiring a gradient.
inline at::Tensor normal(at::IntArrayRef sizes, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kDouble)).requires_grad_();
}

/// Largest absolute difference over the largest magnitude (at least 1); infinities must agree exactly.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return 1e300;
  if (a.numel() == 0) return 0;
  const at::Tensor equal = at::logical_or(a.eq(b), at::logical_and(a.isnan(), b.isnan()));
  const at::Tensor d = at::where(equal, at::zeros({}, a.options()), (a - b).abs());
  if (d.isnan().any().item<bool>()) return 1e300;
  return d.max().item<double>() / std::max(1.0, at::where(b.isfinite(), b, 0).abs().max().item<double>());
}

/// sum of every output with fixed weights: a scalar that depends on each entry; infinite entries are left out.
inline at::Tensor project(const Tensors& outputs) {
  at::Tensor sum = at::zeros({}, at::kDouble);
  double start = 0.3;
  for (const auto& t : outputs) {
    if (!t.defined() || t.numel() == 0) continue;
    const at::Tensor w = at::linspace(start, -1, t.numel(), t.options()).view_as(t);
    sum = sum + (at::where(t.isfinite(), t, 0) * w).sum();
    start += 0.5;
  }
  return sum;
}

inline Tensors gradients(const at::Tensor& scalar, const Tensors& inputs, bool create_graph) {
  auto g = torch::autograd::grad({scalar}, inputs, {}, create_graph, create_graph, /*allow_unused=*/true);
  for (size_t i = 0; i < g.size(); ++i)
    if (!g[i].defined()) g[i] = at::zeros_like(inputs[i]);
  return g;
}

/// Outputs, gradients and gradients of the projected gradients of f at the inputs.
inline Tensors derivatives(const std::function<Tensors(const Tensors&)>& f, const Tensors& inputs) {
  Tensors all = f(inputs);
  const auto first = gradients(project(all), inputs, true);
  const auto second = gradients(project(first), inputs, false);
  all.insert(all.end(), first.begin(), first.end());
  all.insert(all.end(), second.begin(), second.end());
  return all;
}

inline void expect_same(const Tensors& a, const Tensors& b, double tolerance, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_LE(difference(a[i].detach(), b[i].detach()), tolerance) << what << ", tensor " << i;
}

/// The text of the regard::Error that body throws, "" when it throws none.
inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace regard::testing
