// The few-query kernel against the plain triple loop, called directly: every instruction set, storage type and mask.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>

#include "regard/algebra/expr.h"
#include "regard/base/parallel.h"
#include "regard/kernels/cpu/few_queries.h"
#include "regard/kernels/cpu/few_queries_storage.h"
#include "regard/kernels/cpu/isa.h"
#include "regard/kernels/cpu/routes.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/run.h"

namespace regard::kernels::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// float64 differs from the triple loop by the order of sums alone. Forward in float32: some 1e3 terms. Outputs in 16
// bits are rounded to 8 or 11 bits.
constexpr double kDouble = 1e-11, kFloat = 2e-5, kBfloat16 = 5e-3, kFloat16 = 7e-4;

/// How the arrays lie: contiguous; heads inside rows, with gaps; columns reversed and apart.
enum class Strides { contiguous, gaps, reversed };

template <class S>
struct Memory {
  std::vector<S> memory;
  Array4<S> array;

  Memory(const std::vector<int64_t>& s, Strides strides) {
    const int64_t B = s[0], H = s[1], L = s[2], D = s[3];
    const int64_t column = strides == Strides::reversed ? -2 : 1,
                  width = strides == Strides::contiguous ? D : 2 * D + 3;
    array = {nullptr, L * H * width, width, H * width, column};
    if (strides == Strides::contiguous) array.head = L * D, array.row = D;
    memory.assign(static_cast<size_t>(B * H * L * width + 1), stored<S>(kNan));
    array.data = memory.data() + (strides == Strides::reversed && D > 0 ? 2 * (D - 1) : 0);
  }

  Memory(const Tensor& t, Strides strides) : Memory(t.sizes, strides) {
    each(t.sizes, [&](S& to, size_t n) { to = stored<S>(t.data[n]); });
  }

  template <class F>
  void each(const std::vector<int64_t>& s, const F& body) {
    size_t n = 0;
    for (int64_t b = 0; b < s[0]; ++b) {
      for (int64_t h = 0; h < s[1]; ++h) {
        for (int64_t l = 0; l < s[2]; ++l) {
          for (int64_t d = 0; d < s[3]; ++d) {
            body(array.data[b * array.batch + h * array.head + l * array.row + d * array.column], n++);
          }
        }
      }
    }
  }

  Array4<const S> read_only() const { return {array.data, array.batch, array.head, array.row, array.column}; }
};

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

template <class T>
struct Captures {
  std::deque<std::vector<T>> reals;
  std::deque<std::vector<int64_t>> integers;
  std::deque<std::vector<uint8_t>> booleans;

  Capture add(const std::string& name, const Captured& captured) {
    Capture c;
    c.name = name;
    c.sizes = captured.values.sizes;
    c.strides.assign(c.sizes.size(), 1);
    for (size_t k = c.sizes.size(); k-- > 1;) c.strides[k - 1] = c.strides[k] * c.sizes[k];
    const auto& data = captured.values.data;
    if (captured.type == Type::real) {
      c.data = reals.emplace_back(data.begin(), data.end()).data();
      c.element = sizeof(T) == 4 ? Element::float32 : Element::float64;
    } else if (captured.type == Type::integer) {
      c.data = integers.emplace_back(data.begin(), data.end()).data();
      c.element = Element::int64;
    } else {
      c.data = booleans.emplace_back(data.begin(), data.end()).data();
      c.element = Element::boolean;
    }
    return c;
  }
};

template <class T>
Tensor load(const std::vector<T>& values, std::vector<int64_t> sizes) {
  Tensor tensor{std::move(sizes), {}};
  tensor.data.assign(values.begin(), values.end());
  return tensor;
}

enum class Passes { forward, both };

/// The problem solved by the kernel. Gradients of captures are none of its.
template <class T, class S>
Solution run_few(const Problem& x, Strides strides = Strides::contiguous, Passes passes = Passes::both) {
  const AttentionSpec spec = x.spec.resolved();
  Memory<S> q(x.q, strides), k(x.k, strides), v(x.v, strides), grad_o(x.grad_o, strides), o(x.grad_o.sizes, strides);
  std::vector<T> lse(static_cast<size_t>(x.B * x.H * x.M), static_cast<T>(kNan));
  std::vector<T> sinks(x.sinks.data.begin(), x.sinks.data.end());
  const std::vector<T> grad_lse(x.grad_lse.data.begin(), x.grad_lse.data.end());
  Captures<T> captures;
  Attention<T, S> call;
  call.B = x.B, call.H = x.H, call.Hk = x.Hk, call.M = x.M, call.N = x.N, call.Dh = x.Dh, call.Dv = x.Dv;
  call.query_offset = x.query_offset;
  call.scale = x.scale;
  call.spec = &spec;
  call.q = q.read_only(), call.k = k.read_only(), call.v = v.read_only();
  for (const std::string& name : spec.captures()) call.captures.push_back(captures.add(name, x.captures.at(name)));
  if (spec.normalizer.sinks) call.sinks = sinks.data(), call.sink_count = x.sinks.sizes[1];
  call.o = o.array;
  call.lse = lse.data();
  few_queries_forward(call);
  Solution s;
  s.o = filled(x.grad_o.sizes);
  o.each(x.grad_o.sizes, [&](S& value, size_t n) { s.o.data[n] = element<T>(value); });
  s.lse = load(lse, {x.B, x.H, x.M});
  if (passes == Passes::forward) return s;
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
        if (N * D > 640000) continue;  // the triple loop would take the time
        ++seed;
        const int64_t group = int64_t{1} << seed % 3, M = 1 + seed % 4, Dv = widths[(seed * 5) % 7];
        if (N == 5000 && Dv == 768) continue;
        const Problem p = few_problem("plain", {1 + seed % 2, 2 * group, 2, M, N, D, Dv}, seed);
        const std::string what = set + ": " + describe(p);
        const auto strides = static_cast<Strides>(seed % 3);
        expect_forward(run_few<double, double>(p, strides), naive_forward(p), kDouble, what);
        expect_forward(run_few<float, float>(p, strides), naive_forward(p), kFloat, what);
        if (N > 1000) continue;
        const Problem b = rounded<bfloat16>(p), h = rounded<float16>(p);
        expect_forward(run_few<float, bfloat16>(b, strides), naive_forward(b), kBfloat16, what + " bfloat16");
        expect_forward(run_few<float, float16>(h, strides), naive_forward(h), kFloat16, what + " float16");
      }
    }
  });
}

bool uses_operands(const Problem& p) { return !p.spec.resolved().operands().empty(); }

TEST(FewQueries, EveryMechanismForward) {
  const Shape4 shapes[] = {{2, 2, 1, 1, 131, 8, 9}, {1, 4, 2, 3, 200, 16, 5}, {2, 3, 3, 2, 33, 5, 16}};
  each_isa([&](const std::string& set) {
    uint32_t seed = 100;
    for (const Mechanism& m : mechanisms()) {
      for (const Shape4& shape : shapes) {
        for (const int64_t offset : {int64_t{0}, shape.N - shape.M}) {
          Problem p = problem_of(m, shape, ++seed);
          if (uses_operands(p) || m.name == "guarded") continue;
          p.query_offset = offset;
          const Solution expected = naive_forward(p);
          const std::string what = set + ", " + m.name + ": " + describe(p);
          expect_forward(run_few<double, double>(p), expected, kDouble, what);
          expect_forward(run_few<float, float>(p, Strides::gaps), expected, kFloat, what);
        }
      }
    }
  });
}

}  // namespace
}  // namespace regard::kernels::testing
