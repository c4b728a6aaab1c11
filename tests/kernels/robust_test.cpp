// What must not matter (threads, batch-mates, hidden NaN, the instruction set) and what must be refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>

#include "regard/base/error.h"
#include "regard/base/parallel.h"
#include "regard/kernels/cpu/isa.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/run.h"

namespace regard::kernels::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

const Mechanism& mechanism(const std::string& name) {
  for (const Mechanism& m : mechanisms()) {
    if (m.name == name) return m;
  }
  throw std::out_of_range(name);
}

/// Three threads take the tasks in a random order; the first exception is thrown to the caller.
void shuffled(int64_t tasks, const std::function<void(int64_t)>& body) {
  static std::mt19937 random(7);
  std::vector<int64_t> order(static_cast<size_t>(tasks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::mutex mutex;
  std::exception_ptr failure;
  auto work = [&] {
    for (;;) {
      int64_t task;
      {
        const std::lock_guard<std::mutex> lock(mutex);
        if (order.empty()) return;
        task = order.back();
        order.pop_back();
      }
      try {
        body(task);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int n = 0; n < 3; ++n) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

TEST(Robust, BitsDoNotDependOnThreads) {
  for (const Mechanism& m : mechanisms()) {
    const Problem p = problem_of(m, {2, 4, 2, 133, 150, 8, 9}, 21);
    const Solution in_order = run_kernel<float>(p);
    const ParallelFor before = set_parallel_for(shuffled);
    for (int repeat = 0; repeat < 3; ++repeat) EXPECT_TRUE(identical(run_kernel<float>(p), in_order)) << m.name;
    set_parallel_for(before);
  }
}

TEST(Robust, BitsDoNotDependOnBatchMates) {
  for (const char* name : {"plain", "gates", "key bias", "query bias", "documents", "lengths", "sinks",
                           "signed softmax, causal", "sum with floor, weights", "sigmoid, causal",
                           "relu by kept, causal", "identity, weights", "z-score, causal", "z-score, weights"}) {
    const Problem all = problem_of(mechanism(name), {3, 2, 1, 70, 150, 8, 9}, 22);
    Problem one = all;
    one.B = 1;
    for (Tensor* t : {&one.q, &one.k, &one.v, &one.grad_o, &one.grad_lse}) *t = first_batch(*t);
    for (auto& [key, captured] : one.captures) {
      if (captured.values.sizes[0] == all.B) captured.values = first_batch(captured.values);
    }
    const Solution a = run_kernel<float>(all), b = run_kernel<float>(one);
    EXPECT_EQ(first_batch(a.o).data, b.o.data) << name;
    EXPECT_EQ(first_batch(a.q).data, b.q.data) << name;
    EXPECT_EQ(first_batch(a.k).data, b.k.data) << name;
    EXPECT_EQ(first_batch(a.v).data, b.v.data) << name;
    for (const auto& [key, gradient] : a.captures) {
      EXPECT_EQ(first_batch(gradient).data, b.captures.at(key).data) << name << " " << key;
    }
  }
}

/// Fills the rows [from, to) of all (batch, head) with NaN and infinities.
void poison(Tensor& t, int64_t from, int64_t to) {
  for (int64_t b = 0; b < t.sizes[0]; ++b) {
    for (int64_t h = 0; h < t.sizes[1]; ++h) {
      for (int64_t l = from; l < to; ++l) {
        for (int64_t d = 0; d < t.sizes[3]; ++d) t.at({b, h, l, d}) = d % 2 == 0 ? kNan : INFINITY;
      }
    }
  }
}

/// Keys from 40 on, and queries 8 and 9, are hidden from everything.
Problem padded(const std::string& normalizer, bool weighted, bool counted) {
  Problem p = problem_of(mechanism(normalizer), {2, 4, 2, 67, 141, 6, 5}, 23);
  p.spec.keep = (column() < 40) & ((row() < 8) | (row() > 9)) & (query() >= key());
  if (weighted) p.spec.weight = sigmoid(dot());
  if (counted) p.spec.counted = (column() < 40) & ((row() < 8) | (row() > 9));
  return p;
}

void expect_hidden_nan_harmless(const std::string& set) {
  const char* const normalizers[] = {"plain", "signed softmax", "sum",      "sum with floor", "sigmoid",
                                     "relu",  "relu by kept",   "identity", "z-score"};
  for (int variant = 0; variant < 36; ++variant) {
    const std::string name = normalizers[variant / 4];
    const Problem clean = padded(name, variant & 1, variant & 2);
    Problem poisoned = clean;
    poison(poisoned.k, 40, 141);
    poison(poisoned.v, 40, 141);
    poison(poisoned.q, 8, 10);
    poison(poisoned.grad_o, 8, 10);
    EXPECT_TRUE(identical(run_kernel<float>(poisoned), run_kernel<float>(clean))) << set << name << variant;
    EXPECT_TRUE(identical(run_kernel<double>(poisoned, Layout::gaps), run_kernel<double>(clean)))
        << set << name << variant;
  }
}

TEST(Robust, HiddenNanReachesNothing) {
  const std::string chosen = isa();
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    if (use_isa(name)) expect_hidden_nan_harmless(name);
  }
  ASSERT_TRUE(use_isa(chosen));
}

TEST(Robust, VisibleNanIsNotHidden) {
  Problem p = padded("plain", false, false);
  p.v.at({0, 0, 3, 0}) = kNan;
  const Solution s = run_kernel<float>(p, Layout::contiguous, false);
  EXPECT_TRUE(std::isnan(s.o.at({0, 0, 3, 0})));
  EXPECT_TRUE(std::isfinite(s.o.at({0, 0, 2, 0})));
  EXPECT_TRUE(std::isfinite(s.o.at({0, 0, 3, 1})));
}

TEST(Robust, RowsWithoutKeysAreZero) {
  Problem p = problem_of(mechanism("rows"), {1, 2, 1, 70, 33, 4, 4}, 24);
  const Solution s = run_kernel<float>(p);
  for (int64_t d = 0; d < p.Dv; ++d) EXPECT_EQ(s.o.at({0, 1, 66, d}), 0);
  for (int64_t d = 0; d < p.Dh; ++d) EXPECT_EQ(s.q.at({0, 1, 66, d}), 0);
  EXPECT_EQ(s.lse.at({0, 1, 66}), -INFINITY);
}

TEST(Robust, LargeScoresDoNotOverflow) {
  Problem p = problem_of(mechanism("pair bias"), {1, 1, 1, 40, 200, 4, 4}, 25);
  for (double& value : p.captures.at("bias").values.data) value *= 1000;
  expect_alike(run_kernel<double>(p), naive(p), 1e-9, "large scores");
}

TEST(Robust, InstructionSetsAgree) {
  const std::string chosen = isa();
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    if (!use_isa(name)) continue;
    EXPECT_EQ(isa(), name);
    for (const Mechanism& m : mechanisms()) {
      const Problem p = problem_of(m, {1, 2, 1, 49, 133, 13, 21}, 26);
      const Solution expected = naive(p);
      expect_alike(run_kernel<double>(p), expected, 1e-11, m.name + " by " + name, least_of(p));
      expect_alike(run_kernel<float>(p), expected, 5e-5, m.name + " by " + name, least_of(p));
    }
  }
  ASSERT_TRUE(use_isa(chosen));
  EXPECT_THROW(use_isa("mmx"), Error);
}

std::string message_of(const Problem& p) {
  try {
    run_kernel<float>(p);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Robust, ReadsOutsideAreRefused) {
  Problem p = problem_of(mechanism("guarded"), {1, 2, 1, 70, 20, 4, 4}, 27);
  EXPECT_EQ(message_of(p), "no error");
  p.spec.keep = (column() < 6) & (query() >= key()) & (query() - key() < 4);
  EXPECT_EQ(message_of(p),
            "[attention] expected index 0 of the captured tensor 'short' in [0, 5) where keep holds; "
            "found 5 at batch 0, head 0, row 5, column 5");
  p.spec.keep = capture("short", Type::real, {column()}) > 0;
  EXPECT_NE(message_of(p).find("'short' in [0, 5)"), std::string::npos) << message_of(p);
}

TEST(Robust, WideIntegersAreRefused) {
  Problem p = problem_of(mechanism("documents"), {1, 1, 1, 3, 4, 2, 2}, 28);
  p.captures.at("key_ids").values.data[2] = 3e10;
  EXPECT_EQ(
      message_of(p),
      "[attention] expected integers of the captured tensor 'key_ids' that fit in 32 bits; found one that does not");
}

/// Two gradients too large for buffers: (B, N, N) by key and by a half of the query.
TEST(Robust, LargeGradientsNeedNoBuffer) {
  Problem p = problem_of(mechanism("plain"), {1, 2, 1, 70, 40, 4, 4}, 30);
  std::mt19937 random(30);
  p.captures["large"] = {Type::real, random_normal({50, 40, 2200}, random)};
  p.spec.score = scale() * dot() + capture("large", Type::real, {floor_div(row(), 2), column(), head() * 7});
  expect_alike(run_kernel<double>(p), naive(p), 1e-11, "large");
}

TEST(Robust, Refusals) {
  AttentionSpec spec;
  EXPECT_EQ(refusal(spec.resolved()), "");
  spec.normalizer.kind = Normalizer::Kind::signed_softmax;
  EXPECT_EQ(refusal(spec.resolved()), "");
  spec.normalizer.epsilon = 0.5;
  EXPECT_EQ(refusal(spec.resolved()), "normalizer signed_softmax with an epsilon");
  spec = {};
  spec.dropout = 0.5;
  EXPECT_EQ(refusal(spec.resolved()), "dropout");
  spec = {};
  spec.pair_outputs.push_back({Expr(1.0), Expr(), 1});
  EXPECT_EQ(refusal(spec.resolved()), "pair outputs");
}

TEST(Robust, ContradictionsAreRefused) {
  Problem p = problem_of(mechanism("ranges"), {1, 4, 2, 3, 4, 6, 2}, 29);
  p.spec.score = dot(2, 9);
  EXPECT_EQ(message_of(p), "[attention] expected dot features in [0, 6]; found 2 to 9");
  p = problem_of(mechanism("operands"), {1, 4, 2, 3, 4, 6, 2}, 29);
  p.spec.score = dot("x", 2);
  EXPECT_EQ(message_of(p), "[attention] expected a head of 'x' below 2; found 2");
  p = problem_of(mechanism("plain"), {1, 4, 2, 3, 4, 6, 2}, 29);
  p.spec.normalizer.sinks = true;
  p.sinks = filled({4, 0});
  EXPECT_EQ(message_of(p), "[attention] expected sinks (H, S); found none");
  p = problem_of(mechanism("alibi"), {1, 4, 2, 3, 4, 6, 2}, 29);
  p.captures.at("slopes").values = filled({2, 2});
  EXPECT_EQ(message_of(p), "[attention] expected captured tensor 'slopes' of 1 dimensions; found 2");
  p = problem_of(mechanism("documents"), {1, 4, 2, 3, 4, 6, 2}, 29);
  p.captures.at("key_ids").type = Type::real;
  EXPECT_EQ(message_of(p), "[attention] expected captured tensor 'key_ids' of type int; found float");
}

}  // namespace
}  // namespace regard::kernels::testing
