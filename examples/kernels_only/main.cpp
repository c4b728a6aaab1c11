// A program of the kernel library alone: neither torch nor Python is needed to build or run it.
//
// Declares causal attention with linear biases (ALiBi, arXiv 2108.12409) in the algebra,
//
//     s_ij = <q_i, k_j> / sqrt(D) - slope_h (i - j),   keys j <= i,
//
// runs the kernels on random data and holds it against a plain triple loop. Exits with 1 when they differ.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "regard/base/version.h"
#include "regard/kernels/attention.h"

namespace {

constexpr int64_t B = 1, H = 4, N = 512, D = 64;
constexpr double kTolerance = 1e-5;  // float32 sums of up to 512 terms

std::vector<float> random_values(std::mt19937& random) {
  std::vector<float> values(static_cast<size_t>(B * H * N * D));
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(random);
  return values;
}

regard::AttentionSpec alibi_spec() {
  using namespace regard;
  AttentionSpec spec;
  spec.score = scale() * dot() - capture("slopes", Type::real, {head()}) * cast(query() - key(), Type::real);
  spec.keep = masks::causal();
  return spec.resolved();
}

/// One output row by its definition, in float64.
std::vector<double> plain_row(const float* q, const float* k, const float* v, int64_t i, double slope) {
  std::vector<double> p(static_cast<size_t>(i + 1)), o(static_cast<size_t>(D), 0.0);
  double sum = 0;
  for (int64_t j = 0; j <= i; ++j) {
    double dot = 0;
    for (int64_t d = 0; d < D; ++d) dot += static_cast<double>(q[i * D + d]) * k[j * D + d];
    sum += p[static_cast<size_t>(j)] =
        std::exp(dot / std::sqrt(static_cast<double>(D)) - slope * static_cast<double>(i - j));
  }
  for (int64_t j = 0; j <= i; ++j) {
    for (int64_t d = 0; d < D; ++d) o[static_cast<size_t>(d)] += p[static_cast<size_t>(j)] / sum * v[j * D + d];
  }
  return o;
}

double seconds(const std::chrono::steady_clock::time_point& start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const std::vector<float> q = random_values(random), k = random_values(random), v = random_values(random);
  const std::vector<float> slopes{0.5f, 0.25f, 0.125f, 0.0625f};
  std::vector<float> o(q.size()), lse(static_cast<size_t>(B * H * N));
  const regard::AttentionSpec spec = alibi_spec();

  regard::kernels::Attention<float> call;
  call.B = B, call.H = call.Hk = H, call.M = call.N = N, call.Dh = call.Dv = D;
  call.scale = 1 / std::sqrt(static_cast<double>(D));
  call.spec = &spec;
  call.q = {q.data(), H * N * D, N * D, D, 1};
  call.k = {k.data(), H * N * D, N * D, D, 1};
  call.v = {v.data(), H * N * D, N * D, D, 1};
  call.o = {o.data(), H * N * D, N * D, D, 1};
  call.lse = lse.data();
  call.captures.push_back({"slopes", slopes.data(), regard::kernels::Element::float32, {H}, {1}, nullptr});

  regard::kernels::attention_forward(call);  // compiles the spec and warms the caches
  constexpr int kRuns = 20;
  const auto start = std::chrono::steady_clock::now();
  for (int run = 0; run < kRuns; ++run) regard::kernels::attention_forward(call);
  const double elapsed = seconds(start) / kRuns;

  double error = 0;
  for (int64_t h = 0; h < H; ++h) {
    const int64_t at = h * N * D;
    for (int64_t i = 0; i < N; ++i) {
      const std::vector<double> row = plain_row(&q[at], &k[at], &v[at], i, slopes[static_cast<size_t>(h)]);
      for (int64_t d = 0; d < D; ++d)
        error = std::fmax(error, std::fabs(o[static_cast<size_t>(at + i * D + d)] - row[static_cast<size_t>(d)]));
    }
  }
  const double pairs = B * H * N * (N + 1) / 2.0;
  std::printf("Regard %s, kernels alone\n\n%s\n\n", regard::version(), regard::to_string(spec).c_str());
  std::printf("  %-16s %s\n", "instruction set", regard::kernels::isa().c_str());
  std::printf("  %-16s B %ld, H %ld, N %ld, D %ld\n", "shape", static_cast<long>(B), static_cast<long>(H),
              static_cast<long>(N), static_cast<long>(D));
  std::printf("  %-16s %.3f ms\n", "forward", elapsed * 1e3);
  std::printf("  %-16s %.1f GFLOP/s (existing pairs, one thread)\n", "speed", 4 * pairs * D / elapsed * 1e-9);
  std::printf("  %-16s %.1e (allowed %.0e)\n", "largest error", error, kTolerance);
  const bool fine = error < kTolerance;
  std::printf("  %-16s %s\n", "verdict", fine ? "equal to the plain loop" : "DIFFERS from the plain loop");
  return fine ? 0 : 1;
}
