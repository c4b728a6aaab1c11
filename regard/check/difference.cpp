#include "regard/check/difference.h"

#include <cmath>
#include <limits>

#include "regard/base/error.h"

namespace regard::checking {

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

double magnitude(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  return at::nan_to_num(tensor.detach().to(at::kDouble), 0, 0, 0).abs().max().item<double>();
}

bool finite(const at::Tensor& tensor) {
  return tensor.numel() == 0 || at::isfinite(tensor.detach()).all().item<bool>();
}

Difference difference(const at::Tensor& expected, const at::Tensor& found, double scale) {
  if (expected.sizes() != found.sizes()) {
    fail("check", "a tensor of shape " + shape_text(expected.sizes()), shape_text(found.sizes()));
  }
  Difference result;
  if (expected.numel() == 0) return result;
  at::Tensor e = expected.detach().to(at::kDouble).reshape({-1});
  at::Tensor f = found.detach().to(at::kDouble).reshape({-1});
  if (scale == 0) scale = magnitude(e);
  if (scale == 0) scale = 1;
  // inf - inf is NaN, which must count as equal; every other NaN as the largest error.
  at::Tensor gap = at::where(e == f, at::zeros_like(e), (e - f).abs());
  gap = at::nan_to_num(gap, std::numeric_limits<double>::infinity());
  const int64_t worst = gap.argmax().item<int64_t>();
  result.error = gap[worst].item<double>() / scale;
  result.exact = result.error == 0;
  result.expected = e[worst].item<double>();
  result.found = f[worst].item<double>();
  int64_t rest = worst;
  result.index.resize(expected.dim());
  for (int64_t d = expected.dim() - 1; d >= 0; --d) {
    result.index[d] = rest % expected.size(d);
    rest /= expected.size(d);
  }
  return result;
}

}  // namespace regard::checking
