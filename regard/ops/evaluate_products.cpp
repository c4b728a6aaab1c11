// Sums and products that the evaluation and the formulas share.
#include <algorithm>
#include <limits>

#include "regard/ops/evaluate.h"

namespace regard::ops {

at::ScalarType dtype_of(Type type, at::ScalarType real) {
  switch (type) {
    case Type::boolean:
      return at::kBool;
    case Type::integer:
      return at::kLong;
    case Type::real:
      return real;
  }
  return real;
}

int position(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<int>(std::find(names.begin(), names.end(), name) - names.begin());
}

bool is_zero(const c10::SymInt& value) {
  const auto known = value.maybe_as_int();
  return known && *known == 0;
}

at::Tensor reduce_to(const at::Tensor& t, c10::SymIntArrayRef sizes) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (sizes[static_cast<size_t>(d)] == 1 && t.sym_size(d) != 1) dims.push_back(d);
  return dims.empty() ? t : t.sum(dims, true);
}

at::Tensor pad_to(const at::Tensor& t, const std::vector<c10::SymInt>& before, c10::SymIntArrayRef sizes) {
  std::vector<c10::SymInt> pads;
  bool any = false;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {  // constant_pad_nd lists the last dimension first
    const auto i = static_cast<size_t>(d);
    pads.push_back(before[i]);
    pads.push_back(sizes[i] - t.sym_size(d) - before[i]);
    any = any || !is_zero(pads.back()) || !is_zero(before[i]);
  }
  return any ? at::constant_pad_nd_symint(t, pads) : t;
}

at::Tensor guarded_matmul(const at::Tensor& a, const at::Tensor& keep, const at::Tensor& b, bool finite) {
  if (finite) return at::matmul(a, b);
  const at::Tensor bad = at::isfinite(b.detach()).all(-1, true).logical_not();  // (.., N, 1)
  if (concrete(bad) && !bad.any().item<bool>()) return at::matmul(a, b);
  const at::Tensor reaches = at::logical_and(keep.defined() ? keep : a.ne(0), bad.transpose(-2, -1));
  return at::matmul(at::where(reaches, std::numeric_limits<double>::quiet_NaN(), a), at::where(bad, 0, b));
}

}  // namespace regard::ops
