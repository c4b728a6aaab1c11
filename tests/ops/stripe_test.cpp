#include <ATen/CPUGeneratorImpl.h>

#include "regard/ops/stripe.h"
#include "support.h"

namespace regard {
namespace {

using testing::derivatives;
using testing::expect_same;
using testing::normal;
using testing::Tensors;

// A convolution of scores over three neighboring queries, cumulative sums over keys, heads that talk through a learned
// matrix, softmax, and a loss: none of it is a function of one pair.
Tensors reference(const Tensors& x) {
  const at::Tensor s = at::matmul(x[0], x[1].transpose(-2, -1)) * 0.5;
  const at::Tensor padded = at::constant_pad_nd(s, {0, 0, 1, 1});
  const int64_t M = s.size(2);
  const at::Tensor mixed = padded.slice(2, 0, M) * 0.2 + padded.slice(2, 1, M + 1) + padded.slice(2, 2, M + 2) * 0.3;
  const at::Tensor weights = at::softmax(at::einsum("gh,bhmn->bgmn", {x[3], mixed.cumsum(-1)}), -1);
  return {at::matmul(weights, x[2]), weights.square().sum()};
}

Tensors striped(const Tensors& x, int64_t block) {
  const ops::WeightFunction f = [](const ops::StripeScores& stripe, const Tensors& extra) {
    const at::Tensor& s = stripe.scores;
    const int64_t first = stripe.first.expect_int(), m = (stripe.rows.end - stripe.rows.begin).expect_int(),
                  have = s.size(2);
    const at::Tensor padded = at::constant_pad_nd(s, {0, 0, 1 - first, 1 + first + m - have});
    const at::Tensor mixed = padded.slice(2, 0, m) * 0.2 + padded.slice(2, 1, m + 1) + padded.slice(2, 2, m + 2) * 0.3;
    const at::Tensor weights = at::softmax(at::einsum("gh,bhmn->bgmn", {extra[0], mixed.cumsum(-1)}), -1);
    return Tensors{weights, weights.square().sum()};
  };
  return ops::stripe_attention(x[0], x[1], x[2], 0.5, f, {x[3]},
                               {.before = 1, .after = 1, .losses = 1, .block = block});
}

TEST(Stripe, AnyFunctionOfTheScoresDifferentiatesTwice) {
  const Tensors in = {normal({2, 3, 7, 4}, 1), normal({2, 3, 5, 4}, 2), normal({2, 3, 5, 2}, 3), normal({3, 3}, 4)};
  const auto expected = derivatives(reference, in);
  for (const int64_t block : {1, 2, 3, 7, 100})
    expect_same(derivatives([&](const Tensors& x) { return striped(x, block); }, in), expected, 1e-11,
                "block " + std::to_string(block));
}

// What survives the forward are the inputs: each stripe is one node that runs its function again in the backward.
TEST(Stripe, KeepsNoGraphAndRunsAgainInTheBackward) {
  int calls = 0;
  const ops::StripeFunction f = [&](const ops::Rows& rows, const Tensors& in) {
    ++calls;
    return Tensors{rows.of(in[0], 0).square()};
  };
  const at::Tensor x = normal({10}, 1);
  const at::Tensor y = ops::run_stripes(10, 3, {x}, f, {ops::Combine::concatenate(0)})[0];
  EXPECT_EQ(calls, 4);
  ASSERT_EQ(y.grad_fn()->next_edges().size(), 4U);
  for (const auto& edge : y.grad_fn()->next_edges()) EXPECT_EQ(edge.function->name(), "StripeBackward");
  EXPECT_LE(testing::difference(torch::autograd::grad({y.sum()}, {x})[0], 2 * x.detach()), 1e-15);
  EXPECT_EQ(calls, 8);
}

}  // namespace
}  // namespace regard
