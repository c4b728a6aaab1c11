// The kernels against the plain triple loop: values and gradients.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/cases.h"
#include "tests/kernels/run.h"

namespace regard::kernels::testing {
namespace {

// float64 differs from the triple loop by the order of sums alone; float32 adds its rounding over a few hundred terms.
constexpr double kDouble = 1e-11, kFloat = 5e-5;

TEST(Attention, EveryMechanismOnEveryShape) {
  uint32_t seed = 1;
  for (const Mechanism& mechanism : mechanisms()) {
    for (const Shape4& shape : shapes()) {
      const Problem p = problem_of(mechanism, shape, seed++);
      const Solution expected = naive(p);
      const std::string what = mechanism.name + ": " + describe(p);
      expect_alike(run_kernel<double>(p), expected, kDouble, what, least_of(p));
      expect_alike(run_kernel<float>(p), expected, kFloat, what + " float", least_of(p));
    }
  }
}

TEST(Attention, RandomSpecs) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const Problem p = random_problem(seed);
    const std::string what = "seed " + std::to_string(seed) + ": " + describe(p);
    expect_alike(run_kernel<double>(p, static_cast<Layout>(seed % 3)), naive(p), kDouble, what, least_of(p));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Attention, Layouts) {
  for (const Mechanism& mechanism : {mechanisms()[0], mechanisms()[5], mechanisms()[16]}) {
    const Problem p = problem_of(mechanism, {2, 4, 2, 37, 141, 6, 9}, 5);
    const Solution expected = naive(p);
    for (Layout layout : {Layout::contiguous, Layout::heads_inside, Layout::gaps}) {
      expect_alike(run_kernel<double>(p, layout), expected, kDouble, mechanism.name);
    }
  }
}

Mechanism mechanism(const std::string& name) {
  for (const Mechanism& m : mechanisms()) {
    if (m.name == name) return m;
  }
  throw std::out_of_range(name);
}

TEST(Attention, ScoresOfSomeFeaturesLeaveTheOthersWithoutGradient) {
  const Mechanism some{"some features", [](Problem& p, std::mt19937&) { p.spec.score = scale() * dot(2, 6); }};
  for (const int64_t queries : {1, 40}) {  // few queries a key head, and tiles
    const Problem p = problem_of(some, {2, 2, 1, queries, 100, 8, 4}, 11);
    expect_alike(run_kernel<double>(p), naive(p), kDouble, describe(p));
  }
}

TEST(Attention, ShortPackedSequencesOfGroupedHeads) {
  const Mechanism packed{"packed", [](Problem& p, std::mt19937&) {
                           for (const auto& [name, length] : {std::pair{"of_query", p.M}, std::pair{"of_key", p.N}}) {
                             Tensor ids = filled({1, length});
                             for (int64_t t = 0; t < length; ++t) ids.at({0, t}) = static_cast<double>(3 * t / length);
                             p.captures[name] = {Type::integer, ids};
                           }
                           p.spec.keep = capture("of_query", Type::integer, {batch(), row()}) ==
                                         capture("of_key", Type::integer, {batch(), column()});
                         }};
  const Problem p = problem_of(packed, {1, 4, 2, 20, 90, 8, 8}, 12);
  expect_alike(run_kernel<double>(p), naive(p), kDouble, describe(p));
}

TEST(Attention, EmptySizes) {
  const Shape4 empties[] = {{0, 2, 1, 3, 4, 2, 2}, {2, 0, 0, 3, 4, 2, 2}, {2, 2, 1, 0, 4, 2, 2},
                            {2, 2, 1, 3, 0, 2, 2}, {2, 2, 1, 3, 4, 0, 2}, {2, 2, 1, 3, 4, 2, 0}};
  for (const Shape4& shape : empties) {
    for (const char* name : {"plain", "sinks", "signed softmax", "sum with floor", "sigmoid", "relu by kept, causal",
                             "identity", "z-score"}) {
      const Problem p = problem_of(mechanism(name), shape, 3);
      expect_alike(run_kernel<double>(p), naive(p), kDouble, name + (": " + describe(p)), least_of(p));
      expect_alike(run_kernel<float>(p), naive(p), kFloat, name + (": " + describe(p)), least_of(p));
    }
  }
}

/// One short tile of queries over keys enough to be cut into parts, whose states are merged.
TEST(Attention, OneTileOverManyKeys) {
  for (const char* name :
       {"plain", "sinks", "signed softmax", "sum", "sum with floor, causal", "sigmoid, counted other", "relu by kept",
        "identity by kept, causal", "z-score", "z-score, counted other", "z-score outside, causal"}) {
    Problem p = problem_of(mechanism(name), {1, 2, 1, 17, 2900, 4, 5}, 31);
    p.query_offset = 2880;
    const Solution expected = naive(p);
    expect_alike(run_kernel<double>(p), expected, kDouble, name + (": " + describe(p)), least_of(p));
    expect_alike(run_kernel<float>(p), expected, 4 * kFloat, name + (": " + describe(p)), least_of(p));
  }
}

/// A mean far from 0: sums of squares would lose every digit of the variance.
TEST(Attention, ZScoreOfShiftedScores) {
  Problem p = problem_of(mechanism("z-score, causal"), {1, 2, 1, 70, 700, 8, 5}, 32);
  p.query_offset = 600;
  p.spec.score = scale() * dot() + 300.0;
  expect_alike(run_kernel<double>(p), naive(p), 1e-10, "double", least_of(p));
  expect_alike(run_kernel<float>(p), naive(p), 5e-4, "float", least_of(p));  // a score of 300 is rounded by 1.5e-5
}

/// Central differences of the plain loop, which shares nothing with the symbolic derivative.
void expect_slope(Problem& p, double& entry, double found, const std::string& what) {
  const double step = 1e-5, kept = entry;
  entry = kept + step;
  const double above = objective(p);
  entry = kept - step;
  const double below = objective(p);
  entry = kept;
  const double rounding = 1e-15 * std::abs(above) / step;  // of the difference of two large sums
  EXPECT_NEAR(found, (above - below) / (2 * step), 1e-6 * (1 + std::abs(found)) + 10 * rounding)
      << what << ": " << describe(p);
}

TEST(Attention, GradientsAreFiniteDifferences) {
  std::mt19937 random(11);
  for (uint32_t seed = 400; seed < 440; ++seed) {
    Problem p = random_problem(seed);
    if (p.M * p.N > 3000) continue;
    const Solution s = run_kernel<double>(p);
    auto probe = [&](Tensor& values, const Tensor& gradient, const std::string& what) {
      if (values.data.empty()) return;
      const size_t e = random() % values.data.size();
      expect_slope(p, values.data[e], gradient.data[e], what);
    };
    probe(p.q, s.q, "q");
    probe(p.k, s.k, "k");
    probe(p.v, s.v, "v");
    if (p.spec.normalizer.sinks) probe(p.sinks, s.sinks, "sinks");
    for (const auto& [name, gradient] : s.captures) probe(p.captures.at(name).values, gradient, name);
  }
}

}  // namespace
}  // namespace regard::kernels::testing
