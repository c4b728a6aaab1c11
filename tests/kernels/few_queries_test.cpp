// The few-query kernel against the plain triple loop, called directly: every instruction set, storage type and mask.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <thread>

#include "regard/algebra/expr.h"
#include "regard/base/error.h"
#include "regard/base/parallel.h"
#include "regard/kernels/cpu/checks.h"
#include "regard/kernels/cpu/few_queries.h"
#include "regard/kernels/cpu/few_queries_storage.h"
#include "regard/kernels/cpu/isa.h"
#include "regard/kernels/cpu/routes.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/stored.h"

namespace regard::kernels::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// float64 differs from the triple loop by the order of sums alone. Forward in float32: some 1e3 terms. Outputs in 16
// bits are rounded to 8 or 11 bits.
constexpr double kDouble = 1e-11, kFloat = 2e-5, kBfloat16 = 5e-3, kFloat16 = 7e-4;

constexpr Layout kLayouts[] = {Layout::contiguous, Layout::rows_apart, Layout::gaps};

/// Numbers as S holds them, so that the reference sees the very same.
template <class S>
void round_to(Tensor& t) {
  for (double& x : t.data) x = element<float>(stored<S>(x));
}
template <class S>
Problem rounded(Problem p) {
  for (Tensor* t : {&p.q, &p.k, &p.v, &p.grad_o}) round_to<S>(*t);
  return p;
}

enum class Passes { forward, both };

/// The problem solved by the kernel. Gradients of captures are none of its.
template <class T, class S>
Solution run_few(const Problem& x, Layout layout = Layout::contiguous, Passes passes = Passes::both) {
  const AttentionSpec spec = x.spec.resolved();
  Stored<S> q(x.q, layout), k(x.k, layout), v(x.v, layout), grad_o(x.grad_o, layout), o(x.grad_o.sizes, layout);
  std::vector<T> lse(static_cast<size_t>(x.B * x.H * x.M), static_cast<T>(kNan));
  std::vector<T> sinks(x.sinks.data.begin(), x.sinks.data.end());
  const std::vector<T> grad_lse(x.grad_lse.data.begin(), x.grad_lse.data.end());
  const StoredCaptures<T> captures(x, spec, false);
  Attention<T, S> call;
  call.B = x.B, call.H = x.H, call.Hk = x.Hk, call.M = x.M, call.N = x.N, call.Dh = x.Dh, call.Dv = x.Dv;
  call.query_offset = x.query_offset;
  call.scale = x.scale;
  call.spec = &spec;
  call.q = q.read_only(), call.k = k.read_only(), call.v = v.read_only();
  call.captures = captures.captures;
  if (spec.normalizer.sinks) call.sinks = sinks.data(), call.sink_count = x.sinks.sizes[1];
  call.o = o.array;
  call.lse = lse.data();
  few_queries_forward(call);
  Solution s;
  s.o = o.load();
  s.lse = load(lse, {x.B, x.H, x.M});
  if (passes == Passes::forward) return s;

  std::vector<T> dq(x.q.data.size()), dk(x.k.data.size()), dv(x.v.data.size()), ds(sinks.size());
  AttentionGradient<T, S> g;
  g.grad_o = grad_o.read_only();
  g.grad_lse = grad_lse.data();
  g.o = o.read_only();
  g.lse = lse.data();
  g.q = dq.data(), g.k = dk.data(), g.v = dv.data();
  g.sinks = spec.normalizer.sinks ? ds.data() : nullptr;
  few_queries_backward(call, g);
  s.q = load(dq, x.q.sizes), s.k = load(dk, x.k.sizes), s.v = load(dv, x.v.sizes), s.sinks = load(ds, x.sinks.sizes);
  return s;
}

/// Row counts, lengths and widths of decode steps and pooling.
Problem few_problem(const std::string& name, const Shape4& shape, uint32_t seed) {
  for (const Mechanism& m : mechanisms()) {
    if (m.name != name) continue;
    Problem p = problem_of(m, shape, seed);
    p.query_offset = p.N - p.M;  // a decode step
    return p;
  }
  throw std::out_of_range(name);
}

template <class Body>
void each_isa(const Body& body) {
  const std::string chosen = isa();
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    if (use_isa(name)) body(std::string(name));
  }
  ASSERT_TRUE(use_isa(chosen));
}

void expect_forward(const Solution& found, const Solution& expected, double tolerance, const std::string& what) {
  EXPECT_LE(error_of(found.o, expected.o), tolerance) << what;
  EXPECT_LE(error_of(found.lse, expected.lse), std::min(tolerance, kFloat)) << "lse of " << what;
}

TEST(FewQueries, PlainForwardOverShapes) {
  const int64_t lengths[] = {1, 7, 63, 64, 65, 200, 1000, 5000}, widths[] = {1, 5, 16, 64, 80, 128, 768};
  each_isa([&](const std::string& set) {
    uint32_t seed = 1;
    for (const int64_t N : lengths) {
      for (const int64_t D : widths) {
        if (N * D > 80000) continue;  // the triple loop would take the time
        ++seed;
        const int64_t group = int64_t{1} << seed % 3, M = 1 + seed % 4, Dv = widths[(seed * 5) % 7];
        if (N * Dv > 80000) continue;
        const Problem p = few_problem("plain", {1 + seed % 2, 2 * group, 2, M, N, D, Dv}, seed);
        const std::string what = set + ": " + describe(p);
        const auto layout = kLayouts[seed % 3];
        const Solution expected = naive_forward(p);
        expect_forward(run_few<double, double>(p, layout), expected, kDouble, what);
        expect_forward(run_few<float, float>(p, layout), expected, kFloat, what);
        if (N > 200) continue;
        const Problem b = rounded<bfloat16>(p), h = rounded<float16>(p);
        expect_forward(run_few<float, bfloat16>(b, layout), naive_forward(b), kBfloat16, what + " bfloat16");
        expect_forward(run_few<float, float16>(h, layout), naive_forward(h), kFloat16, what + " float16");
      }
    }
  });
}

void expect_all(const Solution& found, const Solution& expected, double tolerance, const std::string& what) {
  expect_forward(found, expected, tolerance, what);
  EXPECT_LE(error_of(found.q, expected.q), tolerance) << "q of " << what;
  EXPECT_LE(error_of(found.k, expected.k), tolerance) << "k of " << what;
  EXPECT_LE(error_of(found.v, expected.v), tolerance) << "v of " << what;
  if (expected.sinks.sizes.empty()) return;
  EXPECT_LE(error_of(found.sinks, expected.sinks), tolerance) << "sinks of " << what;
}

TEST(FewQueries, PlainGradientsOverShapes) {
  const int64_t lengths[] = {1, 7, 63, 64, 65, 200, 1000}, widths[] = {1, 5, 16, 64, 80, 128};
  each_isa([&](const std::string& set) {
    uint32_t seed = 40;
    for (const int64_t N : lengths) {
      for (const int64_t D : widths) {
        ++seed;
        if (N * D > 20000) continue;  // the triple loop would take the time
        const int64_t group = int64_t{1} << seed % 3, M = 1 + seed % 4, Dv = widths[(seed * 5) % 6];
        const Problem p = few_problem("plain", {1 + seed % 2, 2 * group, 2, M, N, D, Dv}, seed);
        const std::string what = set + ": " + describe(p);
        const auto layout = kLayouts[seed % 3];
        const Solution expected = naive(p);
        expect_all(run_few<double, double>(p, layout), expected, kDouble, what);
        expect_all(run_few<float, float>(p, layout), expected, kFloat, what);
        if (N > 200) continue;
        // o, rounded to S, enters delta
        const Problem b = rounded<bfloat16>(p), h = rounded<float16>(p);
        expect_all(run_few<float, bfloat16>(b, layout), naive(b), 2 * kBfloat16, what + " bfloat16");
        expect_all(run_few<float, float16>(h, layout), naive(h), 2 * kFloat16, what + " float16");
      }
    }
  });
}

bool uses_operands(const Problem& p) { return !p.spec.resolved().operands().empty(); }

TEST(FewQueries, EveryMechanism) {
  const Shape4 shapes[] = {{2, 2, 1, 1, 131, 8, 9}, {1, 4, 2, 3, 200, 16, 5}, {2, 3, 3, 2, 33, 5, 16}};
  each_isa([&](const std::string& set) {
    uint32_t seed = 100;
    for (const Mechanism& m : mechanisms()) {
      for (const Shape4& shape : shapes) {
        for (const int64_t offset : {int64_t{0}, shape.N - shape.M}) {
          Problem p = problem_of(m, shape, ++seed);
          if (!softmax_refusal(p.spec.resolved()).empty()) continue;  // few_queries_take refuses it
          if (uses_operands(p) || (m.name == "guarded" && offset != 0)) continue;
          p.query_offset = offset;
          const Solution expected = naive(p);
          const std::string what = set + ", " + m.name + ": " + describe(p);
          expect_all(run_few<double, double>(p), expected, kDouble, what);
          expect_all(run_few<float, float>(p, Layout::rows_apart), expected, kFloat, what);
        }
      }
    }
  });
}

/// `body` in threads, tasks dealt one by one.
template <int threads>
void threaded(int64_t tasks, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&] {
      for (int64_t task; (task = next++) < tasks;) body(task);
    });
  }
  for (std::thread& thread : pool) thread.join();
}

void backwards(int64_t tasks, const std::function<void(int64_t)>& body) {
  for (int64_t task = tasks; task-- > 0;) body(task);
}

TEST(FewQueries, BitsDoNotDependOnThreads) {
  for (const char* name : {"plain", "causal", "alibi", "lengths", "weight dot gate", "sinks"}) {
    const Problem p = few_problem(name, {3, 4, 2, 2, 3000, 20, 9}, 7);
    const Solution one = run_few<float, float>(p);
    for (const ParallelFor parallel : {threaded<2>, threaded<7>, backwards}) {
      const ParallelFor before = set_parallel_for(parallel);
      EXPECT_TRUE(identical(run_few<float, float>(p), one)) << name;
      set_parallel_for(before);
    }
  }
}

Tensor batch_of(const Tensor& t, int64_t batch) {
  Tensor one{t.sizes, {}};
  one.sizes[0] = 1;
  const auto size = static_cast<int64_t>(t.data.size()) / t.sizes[0];
  one.data.assign(t.data.begin() + batch * size, t.data.begin() + (batch + 1) * size);
  return one;
}

TEST(FewQueries, BitsDoNotDependOnBatchMates) {
  for (const char* name : {"plain", "causal", "lengths", "key bias", "sinks"}) {
    const Problem all = few_problem(name, {3, 4, 2, 2, 3000, 20, 9}, 8);
    const Solution together = run_few<float, float>(all);
    for (int64_t b = 0; b < all.B; ++b) {
      Problem one = all;
      one.B = 1;
      for (Tensor* t : {&one.q, &one.k, &one.v, &one.grad_o, &one.grad_lse}) *t = batch_of(*t, b);
      for (auto& [key, captured] : one.captures) {
        if (captured.values.sizes[0] == all.B) captured.values = batch_of(captured.values, b);
      }
      const Solution alone = run_few<float, float>(one);
      EXPECT_EQ(batch_of(together.o, b).data, alone.o.data) << name;
      EXPECT_EQ(batch_of(together.q, b).data, alone.q.data) << name;
      EXPECT_EQ(batch_of(together.k, b).data, alone.k.data) << name;
      EXPECT_EQ(batch_of(together.v, b).data, alone.v.data) << name;
    }
  }
}

/// A row's bits are the same among two, four or eight rows: passes of rows differ, sums do not.
TEST(FewQueries, BitsDoNotDependOnOtherQueries) {
  each_isa([](const std::string& set) {
    const Problem eight = few_problem("plain", {1, 8, 1, 1, 500, 40, 24}, 9);
    const Solution together = run_few<float, float>(eight, Layout::contiguous, Passes::forward);
    for (const int64_t heads : {2, 4}) {
      Problem some = eight;
      some.H = heads;
      some.q = filled({1, heads, 1, 40});
      std::copy_n(eight.q.data.begin(), heads * 40, some.q.data.begin());
      some.grad_o = filled({1, heads, 1, 24});
      const Solution apart = run_few<float, float>(some, Layout::contiguous, Passes::forward);
      for (size_t n = 0; n < apart.o.data.size(); ++n) EXPECT_EQ(apart.o.data[n], together.o.data[n]) << set;
    }
  });
}

void poison(Tensor& t, int64_t from, int64_t to) {
  for (int64_t h = 0; h < t.sizes[1]; ++h) {
    for (int64_t l = from; l < to; ++l) {
      for (int64_t d = 0; d < t.sizes[3]; ++d) t.at({0, h, l, d}) = d % 2 == 0 ? kNan : INFINITY;
    }
  }
}

/// Keys 40 and on are hidden, of every second query keys 17 to 19 too, query 2 sees nothing.
TEST(FewQueries, HiddenNanReachesNothing) {
  each_isa([](const std::string& set) {
    for (const bool weighted : {false, true}) {
      Problem clean = few_problem("plain", {1, 2, 1, 3, 200, 6, 5}, 10);
      clean.spec.keep = (column() < 40) & (row() != 2);
      if (weighted) clean.spec.weight = sigmoid(dot());
      Problem poisoned = clean;
      poison(poisoned.k, 40, 200);
      poison(poisoned.v, 40, 200);
      poison(poisoned.q, 2, 3);
      poison(poisoned.grad_o, 2, 3);
      const Solution expected = run_few<float, float>(clean);
      EXPECT_TRUE(identical(run_few<float, float>(poisoned), expected)) << set << weighted;
      EXPECT_TRUE(identical(run_few<float, float>(poisoned, Layout::gaps), expected)) << set << weighted;
      for (int64_t d = 0; d < 5; ++d) EXPECT_EQ(expected.o.at({0, 1, 2, d}), 0);
      for (int64_t d = 0; d < 6; ++d) EXPECT_EQ(expected.q.at({0, 1, 2, d}), 0);
      EXPECT_EQ(expected.lse.at({0, 1, 2}), -INFINITY);
    }
  });
}

TEST(FewQueries, VisibleNanIsNotHidden) {
  each_isa([](const std::string& set) {
    Problem p = few_problem("plain", {1, 2, 1, 2, 200, 6, 5}, 11);
    p.v.at({0, 0, 70, 3}) = kNan;
    Solution s = run_few<float, float>(p, Layout::contiguous, Passes::forward);
    EXPECT_TRUE(std::isnan(s.o.at({0, 1, 1, 3}))) << set;
    EXPECT_TRUE(std::isfinite(s.o.at({0, 1, 1, 2}))) << set;
    p.k.at({0, 0, 9, 1}) = kNan;
    s = run_few<float, float>(p, Layout::contiguous, Passes::forward);
    EXPECT_TRUE(std::isnan(s.o.at({0, 1, 1, 2}))) << set;
    EXPECT_TRUE(std::isnan(s.lse.at({0, 1, 1}))) << set;
  });
}

/// Scores of -inf hide a pair though keep does not; the largest finite negative score is a score like any other.
TEST(FewQueries, InfiniteAndExtremeScores) {
  each_isa([](const std::string& set) {
    Problem p = few_problem("plain", {1, 1, 1, 3, 150, 4, 4}, 12);
    p.captures["bias"] = {Type::real, filled({3, 150}, -INFINITY)};
    Tensor& bias = p.captures.at("bias").values;
    for (int64_t j = 60; j < 80; ++j) bias.at({1, j}) = 0;
    for (int64_t j = 0; j < 150; ++j) bias.at({2, j}) = std::numeric_limits<float>::lowest();
    p.spec.score = capture("bias", Type::real, {row(), column()});
    const Solution s = run_few<float, float>(p);
    for (int64_t d = 0; d < 4; ++d) {
      double some = 0, all = 0;
      for (int64_t j = 0; j < 150; ++j) {
        all += p.v.at({0, 0, j, d}) / 150;
        if (j >= 60 && j < 80) some += p.v.at({0, 0, j, d}) / 20;
      }
      EXPECT_EQ(s.o.at({0, 0, 0, d}), 0) << set;
      EXPECT_NEAR(s.o.at({0, 0, 1, d}), some, 1e-6) << set;
      EXPECT_NEAR(s.o.at({0, 0, 2, d}), all, 1e-6) << set;
    }
    EXPECT_EQ(s.lse.at({0, 0, 0}), -INFINITY) << set;
    for (const double x : s.v.data) EXPECT_TRUE(std::isfinite(x)) << set;
  });
}

/// A set wider than the widest with a table of its own uses that one, not the narrowest.
TEST(FewQueries, WiderSetsUseTheWidestTable) {
  const std::string chosen = isa();
  if (!use_isa("avx512")) GTEST_SKIP() << "no AVX-512 here";
  const FewPrimitives<float>* table = &few_primitives<float>();
  ASSERT_TRUE(use_isa("baseline"));
  EXPECT_NE(&few_primitives<float>(), table);
  if (use_isa("amx")) {
    EXPECT_EQ(&few_primitives<float>(), table);
  }
  ASSERT_TRUE(use_isa(chosen));
}

TEST(FewQueries, ConversionsOfSixteenBits) {
  each_isa([](const std::string& set) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float16 h{static_cast<uint16_t>(bits)};
      const auto x = element<float>(h);
      const uint32_t magnitude = bits & 0x7fff;
      if (magnitude > 0x7c00) {
        ASSERT_TRUE(std::isnan(x));
        continue;
      }
      const double exponent = (magnitude >> 10) == 0 ? -14 : static_cast<int>(magnitude >> 10) - 15;
      const double mantissa = (magnitude & 0x3ff) / 1024.0 + ((magnitude >> 10) == 0 ? 0 : 1);
      const double expected = magnitude == 0x7c00 ? INFINITY : std::ldexp(mantissa, static_cast<int>(exponent));
      ASSERT_EQ(std::abs(x), expected) << bits;
      ASSERT_EQ(stored<float16>(x).bits, bits);
    }
    EXPECT_EQ(stored<float16>(65519.0f).bits, 0x7bff);
    EXPECT_EQ(stored<float16>(65520.0f).bits, 0x7c00);
    EXPECT_EQ(stored<float16>(1 + 0x1p-11f).bits, 0x3c00);  // a tie goes to even
    EXPECT_EQ(stored<float16>(1 + 0x1.8p-10f).bits, 0x3c02);
    EXPECT_EQ(stored<bfloat16>(1 + 0x1p-8f).bits, 0x3f80);
    EXPECT_EQ(stored<bfloat16>(1 + 0x1.8p-7f).bits, 0x3f82);
    // The vectors' conversions: a value of every kind through one key of weight 1.
    Problem p = few_problem("plain", {1, 1, 1, 1, 1, 1, 16}, 13);
    const double values[] = {0, 1, -1, 0x1p-24, -0x1p-24, 0x1p-14, 65504, -65504, 0.333251953125, 2, 3, 4, 5, 6, 7, 8};
    std::copy_n(values, 16, p.v.data.begin());
    EXPECT_EQ((run_few<float, float16>(p, Layout::contiguous, Passes::forward).o.data), p.v.data) << set;
  });
}

/// A window in a long cache reads its own keys alone: poison elsewhere would show.
TEST(FewQueries, SkippedKeysAreNotRead) {
  Problem p = few_problem("window", {1, 2, 1, 1, 3000, 8, 8}, 14);
  p.query_offset = 1500;
  const Solution clean = run_few<float, float>(p);
  poison(p.k, 0, 1490);
  poison(p.k, 1510, 3000);
  poison(p.v, 0, 1490);
  poison(p.v, 1510, 3000);
  EXPECT_TRUE(identical(run_few<float, float>(p), clean));
}

TEST(FewQueries, BroadcastKeys) {
  const Problem p = few_problem("plain", {2, 2, 2, 2, 100, 16, 16}, 15);
  Problem same = p;  // every batch and head holds the first one's keys
  for (Tensor* t : {&same.k, &same.v}) {
    const size_t size = 100 * 16;
    for (size_t n = size; n < t->data.size(); ++n) t->data[n] = t->data[n % size];
  }
  const AttentionSpec spec = p.spec.resolved();
  Stored<float> q(same.q, Layout::contiguous), k(same.k, Layout::contiguous), v(same.v, Layout::contiguous);
  Stored<float> o(same.grad_o.sizes, Layout::contiguous);
  std::vector<float> lse(8);
  Attention<float> call;
  call.B = 2, call.H = 2, call.Hk = 2, call.M = 2, call.N = 100, call.Dh = 16, call.Dv = 16;
  call.scale = p.scale;
  call.spec = &spec;
  call.q = q.read_only(), call.k = k.read_only(), call.v = v.read_only();
  for (Array4<const float>* a : {&call.k, &call.v}) a->batch = a->head = 0;
  call.o = o.array;
  call.lse = lse.data();
  few_queries_forward(call);
  const Solution expected = run_few<float, float>(same, Layout::contiguous, Passes::forward);
  for (size_t n = 0; n < expected.o.data.size(); ++n) EXPECT_EQ(o.memory[n], expected.o.data[n]);
}

TEST(FewQueries, ReadsOutsideAreRefused) {
  Problem p = few_problem("guarded", {1, 2, 1, 3, 200, 4, 4}, 16);
  p.query_offset = 0;
  EXPECT_NO_THROW((run_few<float, float>(p)));
  p.spec.keep = column() < 6;
  p.spec.score = capture("short", Type::real, {column()});
  try {
    run_few<float, float>(p);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "[attention] expected index 0 of the captured tensor 'short' in [0, 5) where keep holds; "
                 "found 5 at batch 0, head 0, row 0, column 5");
  }
}

TEST(FewQueries, TakesFewRowsAndCountsItsCalls) {
  const AttentionSpec plain = AttentionSpec{}.resolved();
  Attention<float> call;
  call.B = 1, call.H = 8, call.Hk = 2, call.M = 1, call.N = 1000, call.Dh = 64, call.Dv = 64;
  call.spec = &plain;
  EXPECT_TRUE(few_queries_take(call));
  call.M = 5;
  EXPECT_FALSE(few_queries_take(call));
  call.M = 1, call.N = 3;
  EXPECT_FALSE(few_queries_take(call));
  call.N = 1000;
  AttentionSpec named;
  named.score = scale() * dot("x");
  named = named.resolved();
  call.spec = &named;
  EXPECT_FALSE(few_queries_take(call));
  AttentionSpec biased;
  biased.score = scale() * dot() + capture("bias", Type::real, {column()});
  biased = biased.resolved();
  call.spec = &biased;
  float gradient = 0;
  call.captures = {{"bias", nullptr, Element::float32, {1000}, {1}, nullptr}};
  EXPECT_TRUE(few_queries_take(call));
  EXPECT_TRUE(few_queries_take(call, AttentionGradient<float>{}));
  call.captures[0].gradient = &gradient;
  EXPECT_FALSE(few_queries_take(call, AttentionGradient<float>{}));
  reset_route_counts();
  run_few<float, float>(few_problem("plain", {1, 1, 1, 1, 70, 4, 4}, 17));
  EXPECT_EQ(route_counts()[static_cast<size_t>(Route::few_queries)], 2);
}

}  // namespace
}  // namespace regard::kernels::testing
