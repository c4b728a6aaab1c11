// bfloat16 attention on AMX against the triple loop in float64 on the same rounded numbers.
//
// Two measures. Every element lies within a bound that is derived: weights, score gradients and outputs are each
// rounded to bf16 once (relative 2^-8 = kRounding), everything else is float (kFloat). And the root mean square of the
// errors is that of an attention in float64 which rounds just these three.
#include "regard/kernels/cpu/amx.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/isa.h"
#include "regard/kernels/cpu/routes.h"
#include "tests/kernels/amx_run.h"

namespace regard::kernels::testing {
namespace {

constexpr double kRounding = 1.0 / 256, kFloat = 3e-5;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

#define SKIP_WITHOUT_AMX() \
  if (!amx_present()) GTEST_SKIP() << "this processor has no AMX for bf16, or REGARD_ISA hides it"

double squares(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (size_t e = 0; e < a.data.size(); ++e) sum += (a.data[e] - b.data[e]) * (a.data[e] - b.data[e]);
  return std::sqrt(sum);
}

void expect_within(const Tensor& found, const Tensor& expected, const Tensor& bound, const std::string& what) {
  ASSERT_EQ(found.data.size(), expected.data.size()) << what;
  for (size_t e = 0; e < found.data.size(); ++e) {
    if (found.data[e] == expected.data[e]) continue;  // infinities too
    ASSERT_LE(std::abs(found.data[e] - expected.data[e]), bound.data[e]) << what << " at " << e;
  }
}

/// The triple loop, or for large problems the float64 kernel that is held against it by its own tests.
Solution exact_solution(const Problem& p) {
  constexpr int64_t large = 200'000;  // products of one pass: a tenth of a second of the triple loop
  return p.B * p.H * p.M * p.N * (p.Dh + p.Dv) > large ? run_kernel<double>(p) : naive(p);
}

void expect_right(const Problem& p, const std::string& what, Layout layout = Layout::contiguous) {
  const Solution found = run_amx(p, layout), expected = exact_solution(p),
                 bound = amx_bounds(p, expected, kRounding, kFloat);
  expect_within(found.o, expected.o, bound.o, what + " o");
  expect_within(found.lse, expected.lse, bound.lse, what + " lse");
  expect_within(found.q, expected.q, bound.q, what + " dq");
  expect_within(found.k, expected.k, bound.k, what + " dk");
  expect_within(found.v, expected.v, bound.v, what + " dv");
}

TEST(Amx, EveryShape) {
  SKIP_WITHOUT_AMX();
  uint32_t seed = 1;
  const Shape4 more[] = {{1, 2, 1, 31, 33, 31, 33},    {1, 1, 1, 127, 257, 64, 64},  {2, 3, 3, 197, 197, 64, 64},
                         {1, 8, 2, 65, 519, 80, 24},   {1, 2, 2, 300, 300, 128, 96}, {1, 1, 1, 1, 1, 1, 1},
                         {1, 12, 1, 17, 40, 32, 16},   {1, 1, 1, 130, 1, 16, 16},    {1, 1, 1, 1, 700, 64, 48},
                         {1, 2, 2, 16, 513, 256, 200}, {1, 6, 2, 161, 129, 5, 3}};
  std::vector<Shape4> all = shapes();
  all.insert(all.end(), std::begin(more), std::end(more));
  for (const Shape4& s : all) {
    expect_right(amx_problem(s, false, 0, seed++), "plain " + describe(s));
    for (const int64_t offset : {int64_t{0}, s.N - s.M, int64_t{-9}, int64_t{5}}) {
      expect_right(amx_problem(s, true, offset, seed++), "causal from " + std::to_string(offset) + " " + describe(s));
    }
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

/// More than one block of keys and more than one part of them, cut in equal work when causal.
TEST(Amx, PartsOfTheKeys) {
  SKIP_WITHOUT_AMX();
  expect_right(amx_problem({1, 2, 1, 70, 2500, 32, 16}, false, 0, 71), "plain");
  expect_right(amx_problem({1, 2, 1, 200, 3333, 16, 80}, true, 3133, 72), "the last queries");
  expect_right(amx_problem({1, 1, 1, 2100, 2100, 16, 16}, true, 0, 73), "square");
}

TEST(Amx, AnyLayout) {
  SKIP_WITHOUT_AMX();
  for (const Shape4& s : {Shape4{2, 4, 2, 70, 141, 64, 96}, Shape4{1, 2, 2, 37, 300, 40, 9}}) {
    const Problem p = amx_problem(s, true, 60, 5);
    const Solution contiguous = run_amx(p, Layout::contiguous);
    EXPECT_TRUE(identical(run_amx(p, Layout::heads_inside), contiguous)) << describe(s);
    EXPECT_TRUE(identical(run_amx(p, Layout::gaps), contiguous)) << describe(s);
  }
}

TEST(Amx, AnyScale) {
  SKIP_WITHOUT_AMX();
  for (const double scale : {-0.3, 0.0, 1.0, 25.0}) {
    Problem p = amx_problem({1, 2, 1, 45, 300, 16, 16}, true, 200, 6);
    p.scale = scale;
    for (double& x : p.q.data) x = to_bf16(x * 0.2);
    expect_right(p, "scale " + std::to_string(scale));
  }
}

TEST(Amx, ErrorsAreThoseOfRounding) {
  SKIP_WITHOUT_AMX();
  for (const bool causal : {false, true}) {
    const Problem p = amx_problem({1, 2, 1, 260, 390, 64, 64}, causal, 130, 7);
    const Solution found = run_amx(p), exact = exact_solution(p), rounded = amx_simulated(p);
    const auto compare = [&](const Tensor& f, const Tensor& e, const Tensor& r, const char* what) {
      EXPECT_LE(squares(f, e), 1.1 * squares(r, e)) << what;
      EXPECT_GE(squares(f, e), 0.5 * squares(r, e)) << what << ": the measure is blind";
    };
    compare(found.o, exact.o, rounded.o, "o");
    compare(found.q, exact.q, rounded.q, "dq");
    compare(found.k, exact.k, rounded.k, "dk");
    compare(found.v, exact.v, rounded.v, "dv");
  }
}

TEST(Amx, RowsWithoutKeysAreZero) {
  SKIP_WITHOUT_AMX();
  Problem p = amx_problem({1, 2, 1, 90, 60, 32, 32}, true, -37, 8);
  const Solution clean = run_amx(p);
  for (int64_t i = 0; i < 37; ++i) {
    for (int64_t d = 0; d < 32; ++d) {
      EXPECT_EQ(clean.o.at({0, 1, i, d}), 0);
      EXPECT_EQ(clean.q.at({0, 1, i, d}), 0);
      p.q.at({0, 1, i, d}) = p.grad_o.at({0, 1, i, d}) = kNan;
    }
    EXPECT_EQ(clean.lse.at({0, 1, i}), -INFINITY);
  }
  EXPECT_TRUE(identical(run_amx(p), clean)) << "NaN in a row without keys";
  for (const Shape4& s : {Shape4{2, 2, 1, 5, 0, 8, 8}, Shape4{0, 2, 1, 5, 4, 8, 8}, Shape4{1, 2, 1, 0, 4, 8, 8},
                          Shape4{1, 2, 1, 5, 4, 0, 8}, Shape4{1, 2, 1, 5, 4, 8, 0}}) {
    expect_right(amx_problem(s, false, 0, 9), describe(s));
    expect_right(amx_problem(s, true, 0, 9), describe(s));
  }
}

void poison(Tensor& t, int64_t row) {
  for (int64_t h = 0; h < t.sizes[1]; ++h) {
    for (int64_t d = 0; d < t.sizes[3]; ++d) t.at({0, h, row, d}) = d % 2 == 0 ? kNan : INFINITY;
  }
}

/// Rows [from, to) of the two within the bound.
void expect_rows(const Tensor& found, const Tensor& expected, const Tensor& bound, int64_t from, int64_t to,
                 const std::string& what) {
  for (int64_t h = 0; h < found.sizes[1]; ++h) {
    for (int64_t l = from; l < to; ++l) {
      for (int64_t d = 0; d < found.sizes[3]; ++d) {
        const double error = std::abs(found.at({0, h, l, d}) - expected.at({0, h, l, d}));
        ASSERT_LE(error, bound.at({0, h, l, d})) << what << " row " << l;
      }
    }
  }
}

TEST(Amx, NanBehindTheMaskReachesNothing) {
  SKIP_WITHOUT_AMX();
  const Problem clean = amx_problem({1, 2, 1, 200, 200, 64, 64}, true, 0, 10);
  const Solution expected = exact_solution(clean), bound = amx_bounds(clean, expected, kRounding, kFloat);
  for (const int64_t row : {int64_t{3}, int64_t{77}, int64_t{199}}) {
    const std::string what = "row " + std::to_string(row);
    Problem keys = clean;
    poison(keys.k, row);
    poison(keys.v, row);
    const Solution by_keys = run_amx(keys);
    expect_rows(by_keys.o, expected.o, bound.o, 0, row, what + " o");
    expect_rows(by_keys.q, expected.q, bound.q, 0, row, what + " dq");
    EXPECT_TRUE(std::isnan(by_keys.o.at({0, 0, row, 0}))) << what << ": a key that is seen is not hidden";
    EXPECT_TRUE(std::isnan(by_keys.q.at({0, 0, row, 0}))) << what;
    Problem queries = clean;
    poison(queries.q, row);
    poison(queries.grad_o, row);
    const Solution by_queries = run_amx(queries);
    expect_rows(by_queries.k, expected.k, bound.k, row + 1, 200, what + " dk");
    expect_rows(by_queries.v, expected.v, bound.v, row + 1, 200, what + " dv");
    expect_rows(by_queries.o, expected.o, bound.o, row + 1, 200, what + " o");
    EXPECT_TRUE(std::isnan(by_queries.v.at({0, 0, 0, 0}))) << what;
  }
}

/// Keys that no query sees, next to ones that some do.
TEST(Amx, KeysBeyondTheLastQueryMayHoldAnything) {
  SKIP_WITHOUT_AMX();
  const Problem clean = amx_problem({1, 2, 1, 40, 141, 32, 24}, true, 3, 11);
  Problem poisoned = clean;
  for (int64_t row = 43; row < 141; ++row) {
    poison(poisoned.k, row);
    poison(poisoned.v, row);
  }
  EXPECT_TRUE(identical(run_amx(poisoned), run_amx(clean)));
}

std::atomic<int> threads{1};
void on_threads(int64_t tasks, const std::function<void(int64_t)>& body) {
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      for (int64_t task = t; task < tasks; task += threads) body(task);
    });
  }
  for (std::thread& thread : pool) thread.join();
}

TEST(Amx, SameBitsOnAnyNumberOfThreads) {
  SKIP_WITHOUT_AMX();
  for (const Problem& p : {amx_problem({2, 4, 2, 150, 333, 64, 64}, true, 183, 12),
                           amx_problem({1, 2, 1, 64, 4200, 16, 16}, false, 0, 13)}) {
    const Solution alone = run_amx(p);
    const ParallelFor before = set_parallel_for(on_threads);
    for (const int count : {1, 2, 7}) {
      threads = count;
      EXPECT_TRUE(identical(run_amx(p), alone)) << count;
    }
    set_parallel_for(before);
  }
}

TEST(Amx, SameBitsBesideAnyBatchMates) {
  SKIP_WITHOUT_AMX();
  const Problem both = amx_problem({9, 2, 1, 250, 300, 32, 48}, true, 50, 14);
  const Solution together = run_amx(both);
  Problem one = both;
  one.B = 1;
  for (Tensor* t : {&one.q, &one.k, &one.v, &one.grad_o, &one.grad_lse}) *t = first_batch(*t);
  const Solution alone = run_amx(one);
  EXPECT_EQ(first_batch(together.o).data, alone.o.data);
  EXPECT_EQ(first_batch(together.lse).data, alone.lse.data);
  EXPECT_EQ(first_batch(together.q).data, alone.q.data);
  EXPECT_EQ(first_batch(together.k).data, alone.k.data);
  EXPECT_EQ(first_batch(together.v).data, alone.v.data);
}

TEST(Amx, GradientsNotWantedAreNotNeeded) {
  SKIP_WITHOUT_AMX();
  const Problem p = amx_problem({1, 2, 1, 70, 90, 32, 16}, true, 20, 15);
  const Solution all = run_amx(p);
  const Solution q = run_amx(p, Layout::contiguous, {true, false, false});
  const Solution v = run_amx(p, Layout::contiguous, {false, false, true});
  EXPECT_EQ(q.q.data, all.q.data);
  EXPECT_EQ(v.v.data, all.v.data);
}

std::string refusal_of(const Problem& p) {
  const AttentionSpec spec = p.spec.resolved();
  Attention<float, bfloat16> call;
  call.B = call.H = call.Hk = call.M = call.N = call.Dh = call.Dv = 1;
  call.spec = &spec;
  return amx_refusal(call);
}

TEST(Amx, RefusalsSayWhy) {
  SKIP_WITHOUT_AMX();
  Problem p;
  EXPECT_EQ(refusal_of(p), "");
  p.spec.keep = masks::causal();
  EXPECT_EQ(refusal_of(p), "");
  p.spec.keep = key() <= query();
  EXPECT_EQ(refusal_of(p), "");
  p.spec.keep = query() > key();
  EXPECT_EQ(refusal_of(p), "a mask other than causal");
  p.spec = {};
  p.spec.score = scale() * dot() - 0.5 * abs(query() - key());
  EXPECT_EQ(refusal_of(p), "an expression");
  p.spec = {};
  p.spec.weight = sigmoid(dot());
  EXPECT_EQ(refusal_of(p), "a weight");
  p.spec = {};
  p.spec.keep = masks::causal();
  p.spec.counted = Expr(true);
  EXPECT_EQ(refusal_of(p), "counted pairs other than the kept ones");
  p.spec = {};
  p.spec.normalizer.sinks = true;
  EXPECT_EQ(refusal_of(p), "sinks");
  p.spec = {};
  p.spec.normalizer.kind = Normalizer::Kind::sigmoid;
  EXPECT_EQ(refusal_of(p), "normalizer sigmoid");
}

TEST(Amx, CallsAreCounted) {
  SKIP_WITHOUT_AMX();
  reset_route_counts();
  run_amx(amx_problem({1, 1, 1, 3, 4, 2, 2}, false, 0, 16));
  EXPECT_EQ(route_counts()[static_cast<size_t>(Route::amx)], 2);
}

TEST(Amx, ANarrowerInstructionSetHidesIt) {
  const std::string chosen = isa();
  ASSERT_TRUE(use_isa("baseline"));
  EXPECT_FALSE(amx_present());
  EXPECT_EQ(refusal_of(Problem{}), "no AMX");
  use_isa("avx512");
  EXPECT_FALSE(amx_present());
  EXPECT_EQ(use_isa("amx"), amx_usable());
  EXPECT_EQ(amx_present(), amx_usable());
  ASSERT_TRUE(use_isa(chosen));
}

}  // namespace
}  // namespace regard::kernels::testing
