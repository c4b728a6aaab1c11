#include "regard/nn/dense/rotary.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorIndexing.h>

#include <cmath>

#include "regard/base/error.h"
#include "regard/nn/shapes.h"

namespace regard {

at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, double theta, int64_t width, bool interleaved) {
  if (!(theta > 0 && std::isfinite(theta))) fail("rotary", "a positive base theta", std::to_string(theta));
  const bool places = positions.dim() == 1 || (positions.dim() == 2 && positions.sym_size(0) == x.sym_size(0));
  if (!places || positions.sym_size(-1) != x.sym_size(2))
    fail("rotary", "positions (L) or (B, L) of the tokens of " + describe(x), describe(positions));
  const auto real = x.options().dtype(at::toOpMathType(x.scalar_type()));
  const at::Tensor exponents = at::arange(0, width, 2, real) / static_cast<double>(width);
  const at::Tensor frequencies = at::pow(theta, exponents.neg());
  const at::Tensor angles = positions.to(real).unsqueeze(-1) * frequencies;  // (L, W/2) or (B, L, W/2)
  return rotate_by(x, angles.cos(), angles.sin(), width, interleaved);
}

at::Tensor rotate_by(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, int64_t width,
                     bool interleaved) {
  const int64_t pair_dim = interleaved ? -1 : -2;
  const std::vector<int64_t> pairs = interleaved ? std::vector<int64_t>{-1, 2} : std::vector<int64_t>{2, -1};
  const auto real = at::toOpMathType(x.scalar_type());
  // (first channel's, second channel's) of every pair, with an axis for the heads.
  const auto both = [&](const at::Tensor& table) {
    const at::Tensor headed = (table.dim() == 3 ? table.unsqueeze(1) : table).to(real);
    if (headed.sym_size(-1) != width) return std::vector<at::Tensor>{headed, headed};
    return headed.unflatten(-1, pairs).unbind(pair_dim);
  };
  const auto c = both(cos), s = both(sin);
  const auto [a, b] = [&] {
    const auto parts = x.slice(-1, 0, width).to(real).unflatten(-1, pairs).unbind(pair_dim);
    return std::pair{parts[0], parts[1]};
  }();
  const at::Tensor turned = at::stack({a * c[0] - b * s[0], b * c[1] + a * s[1]}, pair_dim).flatten(-2);
  return at::cat({turned.to(x.scalar_type()), x.slice(-1, width)}, -1);
}

at::Tensor table_rows(const char* id, const std::string& name, const at::Tensor& table, const at::Tensor& positions,
                      int64_t width) {
  const bool columns = table.dim() >= 2 && (table.sym_size(-1) == width || 2 * table.sym_size(-1) == width);
  if (!columns || !table.is_floating_point() || table.dim() > 3 ||
      (table.dim() == 3 && table.sym_size(1) != positions.sym_size(-1)))
    fail(id,
         name + " (T, C), row p of position p, or (B, L, C) with L = " + describe(positions.sym_size(-1)) +
             ", C = " + std::to_string(width) + " or its half",
         describe(table));
  return table.dim() == 3 ? table : table.index({positions.to(at::kLong)});
}

}  // namespace regard
