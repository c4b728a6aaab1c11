#include "regard/ops/positions.h"

#include <algorithm>

namespace regard::ops {
namespace {

at::Tensor captured(const Call& call, const std::string& name) {
  const auto names = call.spec->captures();
  const auto it = std::lower_bound(names.begin(), names.end(), name);
  if (it == names.end() || *it != name) return {};
  return call.captures[static_cast<size_t>(it - names.begin())];
}

at::TensorOptions integers(const Call& call) { return call.q.options().dtype(at::kLong).requires_grad(std::nullopt); }

at::Tensor two_dimensional(const at::Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t; }

}  // namespace

at::Tensor query_positions(const Call& call, const Rows& rows) {
  const Positions& map = call.spec->positions.query;
  if (!map.tensor.empty()) return rows.of(two_dimensional(captured(call, map.tensor)), 1).to(at::kLong);
  const at::Tensor row = rows.index(integers(call)).unsqueeze(0);
  return map.identity() ? row.add(c10::Scalar(call.query_offset)) : row.mul(map.stride).add(map.offset);
}

at::Tensor key_positions(const Call& call) {
  const Positions& map = call.spec->positions.key;
  if (!map.tensor.empty()) return two_dimensional(captured(call, map.tensor)).to(at::kLong);
  const at::Tensor column = at::arange(c10::Scalar(call.N()), integers(call)).unsqueeze(0);
  return map.identity() ? column : column.mul(map.stride).add(map.offset);
}

at::Tensor sequence_of_rows(const Call& call, const Rows& rows) {
  const at::Tensor segments = captured(call, packed_query_segments);
  if (segments.defined()) return rows.of(segments, 1).to(at::kLong);
  return at::arange(c10::Scalar(call.B()), integers(call)).unsqueeze(1);
}

}  // namespace regard::ops
