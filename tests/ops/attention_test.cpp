#include <ATen/CPUGeneratorImpl.h>

#include "regard/ops/attention_map.h"
#include "regard/ops/boundary.h"
#include "regard/ops/paths.h"
#include "support.h"

namespace regard {
namespace {

using testing::derivatives;
using testing::expect_same;
using testing::message_of;
using testing::normal;
using testing::Tensors;

constexpr double kTolerance = 1e-11;

AttentionSpec banded() {
  AttentionSpec spec;
  spec.keep = query() + 1 >= key();
  spec.counted = query() + 3 >= key();
  return spec;
}

Tensors results(const AttentionSpec& spec, const Tensors& in, const std::string& path, const at::Tensor& sinks = {}) {
  AttentionArguments arguments;
  arguments.path = path;
  arguments.sinks = sinks;
  const auto out = attention(in[0], in[1], in[2], spec, arguments);
  return {out.o, out.lse, out.pairs};
}

// The stripe path's hand-written backward and its derivative against torch's own differentiation of the composite.
TEST(Attention, EveryNormalizerDifferentiatesTwice) {
  using Kind = Normalizer::Kind;
  const Tensors in = {normal({2, 4, 5, 6}, 1), normal({2, 2, 7, 6}, 2), normal({2, 2, 7, 3}, 3)};
  for (const Kind kind :
       {Kind::softmax, Kind::signed_softmax, Kind::sum, Kind::sigmoid, Kind::relu, Kind::identity, Kind::z_score})
    for (const auto divisor : {Normalizer::Divisor::one, Normalizer::Divisor::keys, Normalizer::Divisor::kept})
      for (const bool detach : {false, true})
        for (const bool masks : {false, true}) {
          const bool divides = kind == Kind::relu || kind == Kind::identity;
          const bool denominator = !divides && kind != Kind::sigmoid;
          if ((divisor != Normalizer::Divisor::one && !divides) || (detach && !denominator)) continue;
          AttentionSpec spec = masks ? banded() : AttentionSpec();
          spec.normalizer.kind = kind;
          spec.normalizer.divisor = divisor;
          spec.normalizer.detach = detach;
          spec.normalizer.floor = kind == Kind::sum ? 0.3 : 0;
          spec.normalizer.epsilon = kind == Kind::z_score ? 1e-3 : 0;
          const auto run = [&](const char* path) {
            return derivatives([&](const Tensors& x) { return results(spec, x, path); }, in);
          };
          expect_same(run("stripe"), run("composite"), kTolerance, to_json(spec));
        }
}

TEST(Attention, SinksAreKeysWithoutValues) {
  AttentionSpec spec = banded();
  spec.normalizer.sinks = true;
  const Tensors in = {normal({2, 4, 5, 6}, 1), normal({2, 2, 7, 6}, 2), normal({2, 2, 7, 3}, 3), normal({4, 2}, 4)};
  const auto run = [&](const char* path) {
    return derivatives([&](const Tensors& x) { return results(spec, x, path, x[3]); }, in);
  };
  expect_same(run("stripe"), run("composite"), kTolerance, "sinks");
}

TEST(Attention, EveryFieldOfASpecAtOnce) {
  AttentionSpec spec;
  const Expr bias = capture("bias", Type::real, {batch(), head(), row(), column()});
  const Expr table = capture("table", Type::real, {head(), query() - key() + 6});
  spec.score = tanh(scale() * dot() * dot("x") + bias + table + dot(1, 4));
  spec.keep = (query() >= key()) & capture("pad", Type::boolean, {batch(), column()});
  spec.weight = sigmoid(dot("x", 1)) * capture("gain", Type::real, {row(), head()});
  spec.pair_outputs = {{cast(abs(query() - key()), Type::real), {}, 1},
                       {spec.score * bias, floor_div(key(), Expr(4)) % Expr(2), 2}};
  const Tensors in = {normal({2, 4, 5, 6}, 1), normal({2, 2, 7, 6}, 2), normal({2, 2, 7, 3}, 3),
                      normal({2, 4, 5, 7}, 4), normal({5, 4}, 5),       normal({4, 20}, 6),
                      normal({2, 2, 5, 3}, 7), normal({2, 2, 7, 3}, 8)};
  const at::Tensor pad = normal({2, 7}, 9).detach().gt(-0.5);
  const auto run = [&](const char* path) {
    return derivatives(
        [&](const Tensors& x) {
          AttentionArguments arguments;
          arguments.captures = {x[3], x[4], pad, x[5]};  // bias, gain, pad, table
          arguments.operands = {x[6], x[7]};
          arguments.query_offset = 2;
          arguments.path = path;
          const auto out = attention(x[0], x[1], x[2], spec, arguments);
          return Tensors{out.o, out.lse, out.pairs};
        },
        in);
  };
  expect_same(run("stripe"), run("composite"), kTolerance, to_json(spec));
}

TEST(Attention, DropoutIsTheSameOnEveryPathAndUnbiased) {
  AttentionSpec spec;
  spec.dropout = 0.25;
  AttentionArguments arguments;
  arguments.seed = at::scalar_tensor(17, at::kLong);
  const at::Tensor q = at::zeros({1, 1, 200, 4}, at::kDouble), k = at::zeros({1, 1, 300, 4}, at::kDouble);
  const at::Tensor v = at::ones({1, 1, 300, 1}, at::kDouble);
  arguments.path = "stripe";
  const at::Tensor striped = attention(q, k, v, spec, arguments).o;
  arguments.path = "composite";
  EXPECT_TRUE(at::equal(striped, attention(q, k, v, spec, arguments).o));
  EXPECT_NEAR(striped.mean().item<double>(), 1.0, 0.01);
  arguments.seed = at::scalar_tensor(18, at::kLong);
  EXPECT_FALSE(at::equal(striped, attention(q, k, v, spec, arguments).o));
}

TEST(Attention, ARowWithoutKeysIsZeroWithZeroGradients) {
  AttentionSpec spec;
  spec.keep = query() > key();
  for (const char* path : {"fused", "stripe", "composite"}) {
    const Tensors in = {normal({1, 1, 3, 4}, 1), normal({1, 1, 3, 4}, 2), normal({1, 1, 3, 4}, 3)};
    const auto out = results(spec, in, path);
    EXPECT_EQ(out[0][0][0][0].abs().max().item<double>(), 0) << path;
    EXPECT_TRUE(out[1][0][0][0].isneginf().item<bool>()) << path;
    const auto g = testing::gradients(out[0].sum(), in, false);
    EXPECT_EQ(g[0][0][0][0].abs().max().item<double>(), 0) << path;
    EXPECT_TRUE(g[1].isfinite().all().item<bool>()) << path;
  }
}

TEST(Attention, RefusesWithTheNameOfTheArgument) {
  const at::Tensor q = normal({2, 4, 5, 6}, 1), k = normal({2, 2, 7, 6}, 2), v = normal({2, 2, 7, 3}, 3);
  EXPECT_EQ(message_of([&] { attention(q, k.slice(3, 0, 5), v, AttentionSpec()); }),
            "[attention] expected k of size 6 in dimension 3; found shape [2, 2, 7, 5]");
  EXPECT_EQ(message_of([&] { attention(q, k, v.slice(2, 0, 6), AttentionSpec()); }),
            "[attention] expected v of size 7 in dimension 2; found shape [2, 2, 6, 3]");
  EXPECT_EQ(message_of([&] { attention(q.slice(1, 0, 3), k, v, AttentionSpec()); }),
            "[attention] expected the key heads to divide the 3 query heads; found 2");
  EXPECT_EQ(message_of([&] { attention(q, k.to(at::kFloat), v, AttentionSpec()); }),
            "[attention] expected k of q's dtype Double; found Float");
  AttentionSpec sinks;
  sinks.normalizer.sinks = true;
  EXPECT_EQ(message_of([&] { attention(q, k, v, sinks); }),
            "[attention] expected sinks, because the normalizer has sink logits; found none");
  AttentionSpec biased;
  biased.score = scale() * dot() + capture("bias", Type::real, {row(), column()});
  AttentionArguments arguments;
  arguments.captures = {at::zeros({5, 7}, at::kLong)};
  EXPECT_EQ(message_of([&] { attention(q, k, v, biased, arguments); }),
            "[attention] expected capture 'bias' of a float dtype; found Long");
  arguments.captures = {at::zeros({5, 6}, at::kDouble)};
  for (const char* path : {"stripe", "composite"}) {
    arguments.path = path;
    EXPECT_EQ(
        message_of([&] { attention(q.detach(), k.detach(), v.detach(), biased, arguments); }),
        "[attention] expected every index into dimension 1 of capture 'bias' in [0, 6) where the pair exists; found an "
        "index out of range");
  }
}

TEST(Attention, DotsLieInsideTheirOperandsOnEveryPath) {
  const at::Tensor q = normal({1, 2, 3, 4}, 1);
  AttentionSpec wide, heads;
  wide.score = dot(2, 9);
  heads.score = dot("x", 3);
  for (const char* path : {"fused", "stripe", "composite"}) {
    AttentionArguments arguments;
    arguments.path = path;
    EXPECT_EQ(message_of([&] { attention(q, q, q, wide, arguments); }),
              "[attention] expected features 2 to 9 of a dot inside the width of q; found shape [1, 2, 3, 4]");
    arguments.operands = {q, q};
    EXPECT_EQ(message_of([&] { attention(q, q, q, heads, arguments); }),
              "[attention] expected head 3 of a dot among the heads of operand q of 'x'; found shape [1, 2, 3, 4]");
  }
}

TEST(Attention, DerivativesWithoutAFusedKernelAreCountedAndRefusedByStrict) {
  const Tensors in = {normal({1, 2, 3, 4}, 1), normal({1, 2, 3, 4}, 2), normal({1, 2, 3, 4}, 3)};
  reset_path_counts();
  derivatives([&](const Tensors& x) { return results(AttentionSpec(), x, "fused"); }, in);
  EXPECT_EQ(
      path_counts(),
      R"({"attention":{"composite":0,"fused":1,"stripe":0},"attention_backward_derivative":{"composite":0,"fused":0,"stripe":1}})");
  const bool before = set_strict(true);
  EXPECT_EQ(
      message_of([&] {
        rethrow_as_error(
            [&] { derivatives([&](const Tensors& x) { return results(AttentionSpec(), x, "fused"); }, in); });
      }),
      "[attention_backward_derivative] expected a derivative that the fused path has, because strict is on; found one "
      "that runs in stripes");
  set_strict(before);
}

TEST(AttentionMap, ProductsAndRowsMatchTheMaterializedMap) {
  AttentionSpec spec = banded();
  spec.score = scale() * dot() - capture("slopes", Type::real, {head()}) * cast(abs(query() - key()), Type::real);
  const Tensors in = {normal({2, 4, 5, 6}, 1), normal({2, 2, 7, 6}, 2), normal({2, 4, 5, 3}, 3), normal({4}, 4)};
  const std::string json = to_json(spec);
  const auto arguments = [&](const Tensors& x, const char* path) {
    AttentionArguments a;
    a.captures = {x[3]};
    a.path = path;
    return a;
  };
  const at::Tensor all = at::arange(5, at::kLong);
  const auto map = [&](const Tensors& x) { return attention_rows(x[0], x[1], all, json, arguments(x, "auto")); };
  const auto expected =
      derivatives([&](const Tensors& x) { return Tensors{at::matmul(map(x).transpose(-2, -1), x[2])}; }, in);
  for (const char* path : {"fused", "stripe", "composite"})
    expect_same(
        derivatives(
            [&](const Tensors& x) { return Tensors{attention_transposed(x[0], x[1], x[2], json, arguments(x, path))}; },
            in),
        expected, kTolerance, path);
  EXPECT_EQ(message_of([&] { attention_rows(in[0], in[1], at::tensor({5}, at::kLong), json, arguments(in, "auto")); }),
            "[attention_rows] expected rows in [0, 5); found 5 to 5");
}

TEST(Merge, PartialStatesGiveTheWholeAndEmptyIsNeutral) {
  const Tensors in = {normal({1, 2, 5, 4}, 1), normal({1, 2, 9, 4}, 2), normal({1, 2, 9, 3}, 3)};
  const auto part = [&](const Tensors& x, int64_t begin, int64_t end) {
    return attention(x[0], x[1].slice(2, begin, end), x[2].slice(2, begin, end), AttentionSpec());
  };
  const auto whole = derivatives(
      [&](const Tensors& x) {
        const auto w = part(x, 0, 9);
        return Tensors{w.o, w.lse};
      },
      in);
  for (const int64_t cut : {0, 1, 4, 9}) {
    const auto merged = derivatives(
        [&](const Tensors& x) {
          const auto a = part(x, 0, cut), b = part(x, cut, 9);
          const auto [o, lse] = merge(a.o, a.lse, b.o, b.lse);
          return Tensors{o, lse};
        },
        in);
    expect_same(merged, whole, kTolerance, "cut " + std::to_string(cut));
  }
  const at::Tensor zero = at::zeros({1, 2, 5, 3}, at::kDouble), none = at::full({1, 2, 5}, -INFINITY, at::kDouble);
  const auto [o, lse] = merge(zero, none, zero, none);
  EXPECT_EQ(o.abs().max().item<double>(), 0);
  EXPECT_TRUE(lse.isneginf().all().item<bool>());
}

TEST(Merge, WhatAnEmptyStateHoldsReachesNothingAndNaNIsNotHidden) {
  const at::Tensor o = at::full({1, 2}, 3.0), garbage = at::full({1, 2}, NAN), lse = at::zeros({1}),
                   none = at::full({1}, -INFINITY);
  const auto [kept, kept_lse] = merge(garbage, none, o, lse);
  EXPECT_TRUE(at::equal(kept, o));
  EXPECT_TRUE(at::equal(kept_lse, lse));
  EXPECT_TRUE(merge(o, at::full({1}, NAN), o, lse).second.isnan().all().item<bool>());
}

}  // namespace
}  // namespace regard
