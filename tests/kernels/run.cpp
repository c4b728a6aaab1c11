#include "tests/kernels/run.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <limits>

namespace regard::kernels::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// A (B, H, L, D) array of T in some layout, with its memory.
template <class T>
struct Stored {
  std::vector<T> memory;
  Array4<T> array;

  Stored(const std::vector<int64_t>& sizes, Layout layout) {
    const int64_t B = sizes[0], H = sizes[1], L = sizes[2], D = sizes[3];
    if (layout == Layout::contiguous) {
      array = {nullptr, H * L * D, L * D, D, 1};
      memory.assign(static_cast<size_t>(B * H * L * D), static_cast<T>(kNan));
    } else if (layout == Layout::heads_inside) {
      array = {nullptr, L * H * D, D, H * D, 1};
      memory.assign(static_cast<size_t>(B * H * L * D), static_cast<T>(kNan));
    } else {
      const int64_t row = 2 * D + 3;
      array = {nullptr, H * L * row, L * row, row, -2};
      memory.assign(static_cast<size_t>(B * H * L * row + 1), static_cast<T>(kNan));
    }
    array.data = memory.data() + (layout == Layout::gaps && D > 0 ? 2 * (D - 1) : 0);
  }

  T& at(int64_t b, int64_t h, int64_t l, int64_t d) {
    return array.data[b * array.batch + h * array.head + l * array.row + d * array.column];
  }

  Array4<const T> read_only() const { return {array.data, array.batch, array.head, array.row, array.column}; }
};

template <class T, class F>
void each(const Tensor& tensor, const F& body) {
  const auto& s = tensor.sizes;
  size_t at = 0;
  for (int64_t b = 0; b < s[0]; ++b) {
    for (int64_t h = 0; h < s[1]; ++h) {
      for (int64_t l = 0; l < s[2]; ++l) {
        for (int64_t d = 0; d < s[3]; ++d) body(b, h, l, d, at++);
      }
    }
  }
}

template <class T>
Stored<T> store(const Tensor& tensor, Layout layout) {
  Stored<T> stored(tensor.sizes, layout);
  each<T>(tensor, [&](int64_t b, int64_t h, int64_t l, int64_t d, size_t at) {
    stored.at(b, h, l, d) = static_cast<T>(tensor.data[at]);
  });
  return stored;
}

template <class T>
Tensor load(const std::vector<T>& values, std::vector<int64_t> sizes) {
  Tensor tensor{std::move(sizes), {}};
  tensor.data.assign(values.begin(), values.end());
  return tensor;
}

/// Captured tensors as the call sees them: reals in T, integers as int64, booleans as bytes.
template <class T>
struct StoredCaptures {
  std::deque<std::vector<T>> reals, gradients;
  std::deque<std::vector<int64_t>> integers;
  std::deque<std::vector<uint8_t>> booleans;
  std::vector<Capture> captures;

  void add(const std::string& name, const Captured& captured) {
    Capture capture;
    capture.name = name;
    capture.sizes = captured.values.sizes;
    capture.strides.assign(capture.sizes.size(), 1);
    for (size_t k = capture.sizes.size(); k-- > 1;) capture.strides[k - 1] = capture.strides[k] * capture.sizes[k];
    const auto& data = captured.values.data;
    if (captured.type == Type::real) {
      capture.data = reals.emplace_back(data.begin(), data.end()).data();
      capture.element = sizeof(T) == 4 ? Element::float32 : Element::float64;
      capture.gradient = gradients.emplace_back(data.size(), T(0)).data();
    } else if (captured.type == Type::integer) {
      capture.data = integers.emplace_back(data.begin(), data.end()).data();
      capture.element = Element::int64;
    } else {
      capture.data = booleans.emplace_back(data.begin(), data.end()).data();
      capture.element = Element::boolean;
    }
    captures.push_back(capture);
  }
};

template <class T>
struct StoredOperand {
  Stored<T> q, k;
  std::vector<T> dq, dk;
};

}  // namespace

template <class T>
Solution run_kernel(const Problem& x, Layout layout, bool backward) {
  const AttentionSpec spec = x.spec.resolved();
  Stored<T> q = store<T>(x.q, layout), k = store<T>(x.k, layout), v = store<T>(x.v, layout);
  Stored<T> o(x.grad_o.sizes, layout), grad_o = store<T>(x.grad_o, layout);
  std::vector<T> lse(static_cast<size_t>(x.B * x.H * x.M), static_cast<T>(kNan)),
      sinks(x.sinks.data.begin(), x.sinks.data.end());
  std::vector<T> grad_lse(x.grad_lse.data.begin(), x.grad_lse.data.end());
  StoredCaptures<T> stored;
  for (const std::string& name : spec.captures()) stored.add(name, x.captures.at(name));
  std::deque<StoredOperand<T>> operands;

  Attention<T> call;
  call.B = x.B, call.H = x.H, call.Hk = x.Hk, call.M = x.M, call.N = x.N, call.Dh = x.Dh, call.Dv = x.Dv;
  call.query_offset = x.query_offset;
  call.scale = x.scale;
  call.spec = &spec;
  call.q = q.read_only(), call.k = k.read_only(), call.v = v.read_only();
  call.captures = stored.captures;
  for (const std::string& name : spec.operands()) {
    const NamedOperand& named = x.operands.at(name);
    operands.push_back({store<T>(named.q, layout), store<T>(named.k, layout), std::vector<T>(named.q.data.size()),
                        std::vector<T>(named.k.data.size())});
    call.operands.push_back({name, operands.back().q.read_only(), operands.back().k.read_only(), named.q.sizes[1],
                             named.q.sizes[3], operands.back().dq.data(), operands.back().dk.data()});
  }
  if (spec.normalizer.sinks) call.sinks = sinks.data(), call.sink_count = x.sinks.sizes[1];
  call.o = o.array;
  call.lse = lse.data();
  attention_forward(call);

  Solution s;
  s.o = filled(x.grad_o.sizes);
  each<T>(s.o, [&](int64_t b, int64_t h, int64_t l, int64_t d, size_t at) { s.o.data[at] = o.at(b, h, l, d); });
  s.lse = load(lse, {x.B, x.H, x.M});
  if (!backward) return s;

  const T nan = static_cast<T>(kNan);  // what is written must not be read
  std::vector<T> dq(x.q.data.size(), nan), dk(x.k.data.size(), nan), dv(x.v.data.size(), nan), ds(sinks.size());
  AttentionGradient<T> g;
  g.grad_o = grad_o.read_only();
  g.grad_lse = grad_lse.data();
  g.o = o.read_only();
  g.lse = lse.data();
  g.q = dq.data(), g.k = dk.data(), g.v = dv.data();
  g.sinks = spec.normalizer.sinks ? ds.data() : nullptr;
  attention_backward(call, g);
  s.q = load(dq, x.q.sizes), s.k = load(dk, x.k.sizes), s.v = load(dv, x.v.sizes), s.sinks = load(ds, x.sinks.sizes);
  for (const Capture& capture : stored.captures) {
    if (capture.gradient == nullptr) continue;
    const auto* data = static_cast<const T*>(capture.gradient);
    const size_t count = x.captures.at(capture.name).values.data.size();
    s.captures[capture.name] = load(std::vector<T>(data, data + count), capture.sizes);
  }
  for (size_t n = 0; n < call.operands.size(); ++n) {
    const NamedOperand& named = x.operands.at(call.operands[n].name);
    s.operands[call.operands[n].name] = {load(operands[n].dq, named.q.sizes), load(operands[n].dk, named.k.sizes)};
  }
  return s;
}

template Solution run_kernel<float>(const Problem&, Layout, bool);
template Solution run_kernel<double>(const Problem&, Layout, bool);

double least_of(const Problem& problem) {
  return problem.spec.normalizer.kind == Normalizer::Kind::z_score ? 10 : 1e-3;
}

double error_of(const Tensor& found, const Tensor& expected, double least) {
  double worst = 0, largest = least;
  if (found.data.size() != expected.data.size()) return INFINITY;
  for (size_t e = 0; e < found.data.size(); ++e) {
    const double f = found.data[e], x = expected.data[e];
    if (f == x) continue;
    if (!std::isfinite(f) || !std::isfinite(x)) return INFINITY;
    worst = std::max(worst, std::abs(f - x));
  }
  for (double x : expected.data) largest = std::isfinite(x) ? std::max(largest, std::abs(x)) : largest;
  return worst / largest;
}

namespace {

using Named = std::vector<std::pair<std::string, const Tensor*>>;

Named tensors_of(const Solution& s) {
  Named all{{"o", &s.o}, {"lse", &s.lse}, {"q", &s.q}, {"k", &s.k}, {"v", &s.v}, {"sinks", &s.sinks}};
  for (const auto& [name, tensor] : s.captures) all.push_back({"capture " + name, &tensor});
  for (const auto& [name, operand] : s.operands) {
    all.push_back({"operand q_" + name, &operand.q});
    all.push_back({"operand k_" + name, &operand.k});
  }
  return all;
}

}  // namespace

void expect_alike(const Solution& found, const Solution& expected, double tolerance, const std::string& what,
                  double least) {
  const Named a = tensors_of(found), b = tensors_of(expected);
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t t = 0; t < a.size(); ++t) {
    if (a[t].first == "sinks" && b[t].second->sizes.empty()) continue;
    EXPECT_EQ(a[t].first, b[t].first) << what;
    EXPECT_LE(error_of(*a[t].second, *b[t].second, least), tolerance) << a[t].first << " of " << what;
  }
}

bool identical(const Solution& a, const Solution& b) {
  const Named x = tensors_of(a), y = tensors_of(b);
  for (size_t t = 0; t < x.size(); ++t) {
    const auto &p = x[t].second->data, &q = y[t].second->data;
    if (p.size() != q.size() || (!p.empty() && std::memcmp(p.data(), q.data(), p.size() * sizeof(double)) != 0))
      return false;
  }
  return true;
}

}  // namespace regard::kernels::testing
