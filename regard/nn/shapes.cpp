#include "regard/nn/shapes.h"

#include <sstream>

namespace regard {
namespace {

template <class T>
std::string list(c10::ArrayRef<T> sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

}  // namespace

std::string describe(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return "float32";
    case at::kDouble: return "float64";
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    case at::kLong: return "int64";
    case at::kInt: return "int32";
    case at::kBool: return "bool";
    default: return c10::toString(type);
  }
}

std::string describe(const c10::SymInt& size) {
  std::ostringstream text;
  text << size;
  return text.str();
}
std::string describe(c10::IntArrayRef shape) { return list(shape); }
std::string describe(c10::SymIntArrayRef shape) { return list(shape); }
std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "none";
  return describe(tensor.sym_sizes()) + " " + describe(tensor.scalar_type());
}

at::Tensor split_heads(const at::Tensor& x, int64_t heads) { return x.unflatten(-1, {heads, -1}).transpose(1, 2); }

at::Tensor merge_heads(const at::Tensor& x) { return x.transpose(1, 2).flatten(2); }

at::Tensor padding(const at::Tensor& lengths, const c10::SymInt& tokens) {
  const auto index = at::arange(at::Scalar(tokens), lengths.options());
  return index.unsqueeze(0) >= lengths.unsqueeze(1);
}

}  // namespace regard
