#include "regard/ops/attention_map.h"

#include <torch/library.h>

#include <sstream>

#include "regard/base/error.h"
#include "regard/ops/attention_op.h"
#include "regard/ops/boundary.h"
#include "regard/ops/formula.h"

namespace regard {
namespace ops {
namespace {

at::Tensor transposed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& u, c10::string_view spec,
                      at::TensorList captures, at::TensorList operands, const OptionalTensor& sinks,
                      const OptionalTensor& seed, c10::SymInt query_offset, c10::string_view path) {
  if (u.dim() != 4 || q.dim() != 4 || u.sym_size(0) != q.sym_size(0) || u.sym_size(1) != q.sym_size(1) ||
      u.sym_size(2) != q.sym_size(2)) {
    std::ostringstream found;
    found << "shape " << u.sym_sizes();
    fail("attention_transposed", "u of shape (batch, heads, queries, width) like q", found.str());
  }
  const at::Tensor keys = repeat_heads(k, q.sym_size(1));
  const at::Tensor v =
      at::zeros_symint({keys.sym_size(0), keys.sym_size(1), keys.sym_size(2), u.sym_size(3)}, u.options());
  const auto [o, lse, pairs] = call_attention(q, keys, v, spec, captures, operands, sinks, seed, query_offset, path);
  const std::array<bool, 6> only_values = {false, false, true, false, false, false};
  return std::get<2>(call_attention_backward(u, std::nullopt, std::nullopt, o.detach(), lse.detach(), q, keys, v, spec,
                                             captures, operands, sinks, seed, query_offset, path, only_values));
}

at::Tensor rows_of_map(const at::Tensor& q, const at::Tensor& k, const at::Tensor& rows, c10::string_view spec,
                       at::TensorList captures, at::TensorList operands, const OptionalTensor& sinks,
                       const OptionalTensor& seed, c10::SymInt query_offset) {
  if (rows.dim() != 1 || rows.scalar_type() != at::kLong)
    fail("attention_rows", "rows, an int64 vector of query indices",
         std::string(toString(rows.scalar_type())) + " of " + std::to_string(rows.dim()) + " dimensions");
  const Call call =
      make_call("attention_rows", q, k, k, std::string(spec), captures, operands, sinks, seed, query_offset);
  if (concrete(rows) && rows.numel() > 0 && (rows.min().item<int64_t>() < 0 || rows.max().item<int64_t>() >= q.size(2)))
    fail("attention_rows", "rows in [0, " + std::to_string(q.size(2)) + ")",
         std::to_string(rows.min().item<int64_t>()) + " to " + std::to_string(rows.max().item<int64_t>()));
  return attention_weights(call, Rows{0, 0, rows});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def(
      "attention_transposed(Tensor q, Tensor k, Tensor u, str spec, Tensor[] captures, Tensor[] operands, "
      "Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0, str path='auto') -> Tensor",
      guarded<&transposed>);
  m.def(
      "attention_rows(Tensor q, Tensor k, Tensor rows, str spec, Tensor[] captures, Tensor[] operands, "
      "Tensor? sinks=None, Tensor? seed=None, SymInt query_offset=0) -> Tensor",
      guarded<&rows_of_map>);
}

}  // namespace ops

namespace {
ops::OptionalTensor some(const at::Tensor& t) { return t.defined() ? ops::OptionalTensor(t) : std::nullopt; }
}  // namespace

at::Tensor attention_transposed(const at::Tensor& q, const at::Tensor& k, const at::Tensor& u, const std::string& spec,
                                const AttentionArguments& a) {
  return rethrow_as_error([&] {
    return ops::transposed(q, k, u, spec, a.captures, a.operands, some(a.sinks), some(a.seed), a.query_offset, a.path);
  });
}

at::Tensor attention_rows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& rows, const std::string& spec,
                          const AttentionArguments& a) {
  return rethrow_as_error([&] {
    return ops::rows_of_map(q, k, rows, spec, a.captures, a.operands, some(a.sinks), some(a.seed), a.query_offset);
  });
}

}  // namespace regard
