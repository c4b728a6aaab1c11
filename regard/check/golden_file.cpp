// The only place where a safetensors file becomes tensors here.

#include <cstring>

#include "regard/base/error.h"
#include "regard/base/safetensors.h"
#include "regard/check/golden_case.h"

namespace regard::checking {
namespace {

at::ScalarType type_of(const TensorSpan& span, const std::string& path) {
  static const std::map<std::string, at::ScalarType> types = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
      {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};
  const auto found = types.find(span.dtype);
  if (found == types.end()) fail("golden", span.name + " of a type that torch has, in " + path, span.dtype);
  return found->second;
}

}  // namespace

GoldenFile read_golden_file(const std::string& path) {
  const Safetensors file(path);
  GoldenFile result;
  result.path = path;
  result.metadata = file.metadata();
  for (const TensorSpan& span : file.tensors()) {
    at::Tensor tensor = at::empty(span.shape, type_of(span, path));
    if (span.bytes) std::memcpy(tensor.data_ptr(), span.data, span.bytes);
    result.tensors[span.name] = tensor;
  }
  return result;
}

}  // namespace regard::checking
