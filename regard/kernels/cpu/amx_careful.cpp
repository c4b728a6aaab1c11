#include "regard/kernels/cpu/amx_careful.h"

#include <cmath>
#include <cstring>

namespace regard::kernels {
namespace {

/// Rounded to bf16 as the products see it: to nearest, ties to even.
float rounded(float value) {
  if (!std::isfinite(value)) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return to_float(static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
}

float dot(const uint16_t* a, int64_t a_column, const uint16_t* b, int64_t b_column, int64_t width) {
  float sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += to_float(a[d * a_column]) * to_float(b[d * b_column]);
  return sum;
}

/// sums[row][d] += factor x[d], sums being [16 rows][width / 16] tiles.
void add_row(float* sums, int64_t row, float factor, const uint16_t* x, int64_t column, int64_t width) {
  const int64_t tiles = ceil_div(width, kTile);
  for (int64_t d = 0; d < width; ++d) {
    sums[((row / kTile * tiles + d / kTile) * kTile + row % kTile) * kTile + d % kTile] +=
        factor * to_float(x[d * column]);
  }
}

}  // namespace

void careful_output(const CarefulOutput& c) {
  for (int64_t j = c.first; j < c.keys; ++j) {
    for (int64_t l = 0; l < kTile; ++l) {
      if (j >= c.limit[l]) continue;
      uint16_t bits;
      std::memcpy(&bits, c.weights + j / 2 * 64 + l * 4 + j % 2 * 2, sizeof bits);
      const float weight = to_float(bits);
      for (int64_t d = 0; d < c.width; ++d) c.output[d * kTile + l] += weight * to_float(c.v[j * c.row + d * c.column]);
    }
  }
}

void careful_gradient(const CarefulGradient& c) {
  const AmxCall& call = *c.call;
  const auto& grad_o = c.gradient->grad_o;
  const auto scale = static_cast<float>(call.scale), base2 = static_cast<float>(call.scale * std::numbers::log2e);
  const int64_t dq_panel = ceil_div(call.Dh, kTile) * kTile * kTile;
  for (int64_t i = 0; i < c.queries; ++i) {
    const uint16_t* q = bits_at(call.q, c.batch, c.head, c.query + i);
    const uint16_t* g = bits_at(grad_o, c.batch, c.head, c.query + i);
    const int64_t seen = std::min(c.keys, c.reach->seen(c.query + i) - c.key);
    for (int64_t j = 0; j < seen; ++j) {
      const uint16_t* k = bits_at(call.k, c.batch, c.key_head, c.key + j);
      const uint16_t* v = bits_at(call.v, c.batch, c.key_head, c.key + j);
      const float p = std::exp2(dot(q, call.q.column, k, call.k.column, call.Dh) * base2 - c.lse[i]);
      const float dp = dot(g, grad_o.column, v, call.v.column, call.Dv);
      const float ds = rounded(p * scale * (dp - c.delta[i]));
      add_row(c.dv, j, rounded(p), g, grad_o.column, call.Dv);
      add_row(c.dk, j, ds, q, call.q.column, call.Dh);
      if (c.dq == nullptr) continue;
      float* dq = c.dq + i / kTile * dq_panel + i % kTile;
      for (int64_t d = 0; d < call.Dh; ++d) dq[d * kTile] += ds * to_float(k[d * call.k.column]);
    }
  }
}

}  // namespace regard::kernels
