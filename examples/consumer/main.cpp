// A program of the library: attention with a causal mask, against the same sum written out in ATen.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>

#include "regard/base/version.h"
#include "regard/ops/attention.h"

int main() {
  at::manual_seed(0);
  // q, k, v: (B, H, M or N, Dh)
  const at::Tensor q = at::randn({2, 4, 16, 32}), k = at::randn({2, 4, 16, 32}), v = at::randn({2, 4, 16, 32});

  regard::AttentionSpec spec;
  spec.keep = regard::query() >= regard::key();
  const at::Tensor o = regard::attention(q, k, v, spec).o;

  const at::Tensor hidden = at::ones({16, 16}, at::kBool).triu(1);
  const at::Tensor scores = at::matmul(q, k.transpose(-2, -1)) / std::sqrt(32.0);
  const at::Tensor expected = at::matmul(scores.masked_fill(hidden, -INFINITY).softmax(-1), v);
  const double difference = (o - expected).abs().max().item<double>();
  std::printf("Regard %s: largest difference from the written-out sum %.2g\n", regard::version(), difference);
  return difference < 1e-5 ? 0 : 1;
}
