#include "tests/kernels/amx_run.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "regard/kernels/cpu/amx.h"
#include "tests/kernels/stored.h"

namespace regard::kernels::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The last dimension of a (B, H, L, D) tensor.
const double* row_of(const Tensor& t, int64_t b, int64_t h, int64_t l) {
  return t.data.data() + ((b * t.sizes[1] + h) * t.sizes[2] + l) * t.sizes[3];
}
double* row_of(Tensor& t, int64_t b, int64_t h, int64_t l) {
  return t.data.data() + ((b * t.sizes[1] + h) * t.sizes[2] + l) * t.sizes[3];
}

double dot_of(const double* a, const double* b, int64_t width) {
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += a[d] * b[d];
  return sum;
}

double magnitude_of(const double* a, const double* b, int64_t width) {
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += std::abs(a[d] * b[d]);
  return sum;
}

/// One row in float64, unlike naive() with every step open to rounding.
struct Row {
  int64_t b, h, i, g;     ///< batch, head, query, key head
  std::vector<double> p;  ///< weights of the keys seen
};

void each_row(const Problem& x, const std::function<void(const Row&)>& body) {
  for (int64_t row = 0; row < x.B * x.H * x.M; ++row) {
    Row r{row / (x.H * x.M), row / x.M % x.H, row % x.M, 0, {}};
    r.g = r.h * x.Hk / x.H;
    const int64_t seen = x.spec.keep.defined() ? std::clamp<int64_t>(r.i + x.query_offset + 1, 0, x.N) : x.N;
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = 0; j < seen; ++j) {
      r.p.push_back(x.scale * dot_of(row_of(x.q, r.b, r.h, r.i), row_of(x.k, r.b, r.g, j), x.Dh));
      top = std::max(top, r.p.back());
    }
    for (double& p : r.p) sum += p = std::exp(p - top);
    for (double& p : r.p) p /= sum;
    body(r);
  }
}

Solution zeros(const Problem& x) {
  Solution s;
  s.o = filled({x.B, x.H, x.M, x.Dv});
  s.lse = filled({x.B, x.H, x.M});
  s.q = filled(x.q.sizes);
  s.k = filled(x.k.sizes);
  s.v = filled(x.v.sizes);
  return s;
}

}  // namespace

double to_bf16(double value) { return element<float>(stored<bfloat16>(value)); }

std::string describe(const Shape4& s) {
  std::string text;
  for (const int64_t size : {s.B, s.H, s.Hk, s.M, s.N, s.Dh, s.Dv}) text += std::to_string(size) + " ";
  return text;
}

Problem amx_problem(const Shape4& s, bool causal, int64_t query_offset, uint32_t seed) {
  Problem p;
  p.B = s.B, p.H = s.H, p.Hk = s.Hk, p.M = s.M, p.N = s.N, p.Dh = s.Dh, p.Dv = s.Dv;
  p.query_offset = query_offset;
  p.scale = s.Dh > 0 ? 1 / std::sqrt(static_cast<double>(s.Dh)) : 1;
  if (causal) p.spec.keep = masks::causal();
  std::mt19937 random(seed);
  const auto draw = [&](std::vector<int64_t> sizes) {
    Tensor tensor = random_normal(std::move(sizes), random);
    for (double& x : tensor.data) x = to_bf16(x);
    return tensor;
  };
  p.q = draw({s.B, s.H, s.M, s.Dh});
  p.k = draw({s.B, s.Hk, s.N, s.Dh});
  p.v = draw({s.B, s.Hk, s.N, s.Dv});
  p.grad_o = draw({s.B, s.H, s.M, s.Dv});
  p.grad_lse = draw({s.B, s.H, s.M});
  return p;
}

Solution run_amx(const Problem& problem, Layout layout, std::array<bool, 3> wanted) {
  const AttentionSpec spec = problem.spec.resolved();
  Stored<bfloat16> q(problem.q, layout), k(problem.k, layout), v(problem.v, layout), grad_o(problem.grad_o, layout);
  Stored<bfloat16> o({problem.B, problem.H, problem.M, problem.Dv}, layout);
  std::vector<float> lse(static_cast<size_t>(problem.B * problem.H * problem.M), kNan);
  Attention<float, bfloat16> call;
  call.B = problem.B, call.H = problem.H, call.Hk = problem.Hk, call.M = problem.M, call.N = problem.N;
  call.Dh = problem.Dh, call.Dv = problem.Dv, call.query_offset = problem.query_offset, call.scale = problem.scale;
  call.spec = &spec;
  call.q = q.read_only(), call.k = k.read_only(), call.v = v.read_only();
  call.o = o.array;
  call.lse = lse.data();
  amx_forward(call);
  std::vector<float> dq(problem.q.data.size()), dk(problem.k.data.size()), dv(problem.v.data.size());
  const std::vector<float> grad_lse(problem.grad_lse.data.begin(), problem.grad_lse.data.end());
  AttentionGradient<float, bfloat16> gradient;
  gradient.grad_o = grad_o.read_only();
  gradient.grad_lse = grad_lse.data();
  gradient.o = o.read_only();
  gradient.lse = lse.data();
  gradient.q = wanted[0] ? dq.data() : nullptr;
  gradient.k = wanted[1] ? dk.data() : nullptr;
  gradient.v = wanted[2] ? dv.data() : nullptr;
  amx_backward(call, gradient);
  Solution s;
  s.o = o.load();
  s.lse = load(lse, problem.grad_lse.sizes);
  s.q = load(dq, problem.q.sizes);
  s.k = load(dk, problem.k.sizes);
  s.v = load(dv, problem.v.sizes);
  return s;
}

Solution amx_bounds(const Problem& x, const Solution& exact, double rounding, double other) {
  Solution bound = zeros(x);
  each_row(x, [&](const Row& r) {
    const double *o = row_of(exact.o, r.b, r.h, r.i), *grad = row_of(x.grad_o, r.b, r.h, r.i);
    const double *q = row_of(x.q, r.b, r.h, r.i), lse = exact.lse.at({r.b, r.h, r.i});
    double *o_bound = row_of(bound.o, r.b, r.h, r.i), *q_bound = row_of(bound.q, r.b, r.h, r.i);
    // Scores of magnitude s carry a float error of s times its unit, and so do the weights.
    const double slack = other * (1 + (r.p.empty() ? 0 : std::abs(lse)));
    bound.lse.at({r.b, r.h, r.i}) = slack;
    for (size_t j = 0; j < r.p.size(); ++j) {
      const double* v = row_of(x.v, r.b, r.g, static_cast<int64_t>(j));
      for (int64_t d = 0; d < x.Dv; ++d) o_bound[d] += 1.01 * (rounding + slack) * r.p[j] * std::abs(v[d]);
    }
    for (int64_t d = 0; d < x.Dv; ++d) o_bound[d] += rounding * std::abs(o[d]);
    const double delta = dot_of(o, grad, x.Dv) - x.grad_lse.at({r.b, r.h, r.i});
    const double delta_bound = magnitude_of(o_bound, grad, x.Dv);
    for (size_t n = 0; n < r.p.size(); ++n) {
      const auto j = static_cast<int64_t>(n);
      const double *k = row_of(x.k, r.b, r.g, j), *v = row_of(x.v, r.b, r.g, j), p = std::abs(x.scale) * r.p[n];
      const double ds = p * std::abs(dot_of(grad, v, x.Dv) - delta);
      const double terms = p * (magnitude_of(grad, v, x.Dv) + std::abs(delta));
      const double ds_bound = 1.01 * (rounding * ds + slack * terms + p * delta_bound);
      double *k_bound = row_of(bound.k, r.b, r.g, j), *v_bound = row_of(bound.v, r.b, r.g, j);
      for (int64_t d = 0; d < x.Dv; ++d) v_bound[d] += (rounding + 2 * slack) * r.p[n] * std::abs(grad[d]);
      for (int64_t d = 0; d < x.Dh; ++d) q_bound[d] += ds_bound * std::abs(k[d]);
      for (int64_t d = 0; d < x.Dh; ++d) k_bound[d] += ds_bound * std::abs(q[d]);
    }
  });
  return bound;
}

Solution amx_simulated(const Problem& x) {
  Solution s = zeros(x);
  each_row(x, [&](const Row& r) {
    const double *grad = row_of(x.grad_o, r.b, r.h, r.i), *q = row_of(x.q, r.b, r.h, r.i);
    double *o = row_of(s.o, r.b, r.h, r.i), *dq = row_of(s.q, r.b, r.h, r.i), top = 0;
    for (const double p : r.p) top = std::max(top, p);
    for (size_t j = 0; j < r.p.size(); ++j) {  // the forward rounds exp(score - maximum), the backward the weight
      const double* v = row_of(x.v, r.b, r.g, static_cast<int64_t>(j));
      for (int64_t d = 0; d < x.Dv; ++d) o[d] += to_bf16(r.p[j] / top) * top * v[d];
    }
    for (int64_t d = 0; d < x.Dv; ++d) o[d] = to_bf16(o[d]);
    const double delta = dot_of(o, grad, x.Dv) - x.grad_lse.at({r.b, r.h, r.i});
    for (size_t n = 0; n < r.p.size(); ++n) {
      const auto j = static_cast<int64_t>(n);
      const double *k = row_of(x.k, r.b, r.g, j), *v = row_of(x.v, r.b, r.g, j);
      const double p = to_bf16(r.p[n]), ds = to_bf16(x.scale * r.p[n] * (dot_of(grad, v, x.Dv) - delta));
      double *dk = row_of(s.k, r.b, r.g, j), *dv = row_of(s.v, r.b, r.g, j);
      for (int64_t d = 0; d < x.Dv; ++d) dv[d] += p * grad[d];
      for (int64_t d = 0; d < x.Dh; ++d) dq[d] += ds * k[d];
      for (int64_t d = 0; d < x.Dh; ++d) dk[d] += ds * q[d];
    }
  });
  return s;
}

}  // namespace regard::kernels::testing
