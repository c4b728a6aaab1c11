#include "tests/kernels/run.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <limits>

#include "tests/kernels/stored.h"

namespace regard::kernels::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <class T>
struct StoredOperand {
  Stored<T> q, k;
  std::vector<T> dq, dk;
};

}  // namespace

template <class T>
Solution run_kernel(const Problem& x, Layout layout, bool backward) {
  const AttentionSpec spec = x.spec.resolved();
  Stored<T> q(x.q, layout), k(x.k, layout), v(x.v, layout), grad_o(x.grad_o, layout), o(x.grad_o.sizes, layout);
  std::vector<T> lse(static_cast<size_t>(x.B * x.H * x.M), static_cast<T>(kNan)),
      sinks(x.sinks.data.begin(), x.sinks.data.end());
  std::vector<T> grad_lse(x.grad_lse.data.begin(), x.grad_lse.data.end());
  StoredCaptures<T> captures(x, spec, true);
  std::deque<StoredOperand<T>> operands;

  Attention<T> call;
  call.B = x.B, call.H = x.H, call.Hk = x.Hk, call.M = x.M, call.N = x.N, call.Dh = x.Dh, call.Dv = x.Dv;
  call.query_offset = x.query_offset;
  call.scale = x.scale;
  call.spec = &spec;
  call.q = q.read_only(), call.k = k.read_only(), call.v = v.read_only();
  call.captures = captures.captures;
  for (const std::string& name : spec.operands()) {
    const NamedOperand& named = x.operands.at(name);
    operands.push_back({{named.q, layout},
                        {named.k, layout},
                        std::vector<T>(named.q.data.size()),
                        std::vector<T>(named.k.data.size())});
    call.operands.push_back({name, operands.back().q.read_only(), operands.back().k.read_only(), named.q.sizes[1],
                             named.q.sizes[3], operands.back().dq.data(), operands.back().dk.data()});
  }
  if (spec.normalizer.sinks) call.sinks = sinks.data(), call.sink_count = x.sinks.sizes[1];
  call.o = o.array;
  call.lse = lse.data();
  attention_forward(call);

  Solution s;
  s.o = o.load();
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
  for (const Capture& capture : captures.captures) {
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

Tensor first_batch(const Tensor& tensor) {
  Tensor first = tensor;
  first.sizes[0] = 1;
  first.data.resize(tensor.data.size() / static_cast<size_t>(tensor.sizes[0]));
  return first;
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
