#include "regard/ops/landmark.h"

#include <torch/library.h>

#include <limits>
#include <sstream>

#include "regard/base/error.h"
#include "regard/ops/boundary.h"
#include "regard/ops/evaluate.h"

namespace regard::ops {
namespace {

/// What a hidden logit becomes: its exponential is exactly 0 beside any real one, and rows without keys stay finite.
double least(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? std::numeric_limits<double>::lowest() : std::numeric_limits<float>::lowest();
}

at::Tensor masked_softmax(const at::Tensor& logits, const at::Tensor& kept) {
  const at::Tensor hidden = kept.logical_not();
  return at::softmax(logits.masked_fill(hidden, least(logits)), -1).masked_fill(hidden, 0);
}

/// The softmax of the kept logits inside each section; `index` names sections, all below G = n + 1.
at::Tensor softmax_by_section(const at::Tensor& logits, const at::Tensor& kept, const at::Tensor& index,
                              const at::Tensor& sections) {
  const at::Tensor hidden = kept.logical_not(), own = logits.masked_fill(hidden, least(logits));
  // The maximum is a constant: it cancels.
  const at::Tensor top = at::scatter_reduce(sections, -1, index, own.detach(), "amax", /*include_self=*/false);
  const at::Tensor e = (own - top.gather(-1, index)).exp().masked_fill(hidden, 0);
  const at::Tensor sum = at::scatter_add(sections, -1, index, e).gather(-1, index);
  return e / sum.masked_fill(sum == 0, 1);
}

}  // namespace

at::Tensor landmark_sections(const at::Tensor& is_mem) {
  const at::Tensor count = is_mem.to(at::kLong);
  return count.cumsum(-1) - count;
}

at::Tensor landmark_softmax(const at::Tensor& logits, const LandmarkKeys& keys, const GroupFactor& factor) {
  const at::Tensor mem = keys.is_mem.unsqueeze(1).unsqueeze(1), section = keys.section.unsqueeze(1).unsqueeze(1);
  const at::Tensor current = keys.current.unsqueeze(1).unsqueeze(-1);  // (B, 1, m, 1)
  const at::Tensor past = at::logical_and(section < current, keys.allowed);
  const at::Tensor ordinary = at::logical_and(past, mem.logical_not());
  const at::Tensor here = at::logical_and(at::logical_and(section == current, mem.logical_not()), keys.allowed);
  const at::Tensor index = section.expand_symint(logits.sym_sizes());
  std::vector<c10::SymInt> shape = logits.sym_sizes().vec();
  shape.back() = shape.back() + 1;  // no more sections than landmarks and one
  const at::Tensor sections = at::zeros_symint(shape, logits.options().requires_grad(std::nullopt));

  const at::Tensor inner = softmax_by_section(logits, ordinary, index, sections);
  const at::Tensor outer = masked_softmax(logits, at::logical_or(at::logical_and(past, mem), here));
  at::Tensor share = at::scatter_add(sections, -1, index, outer.masked_fill(mem.logical_not(), 0));
  if (factor) share = factor(share);
  return outer.masked_fill(mem, 0) + inner * share.gather(-1, index);
}

at::Tensor landmark_blocks(const at::Tensor& logits, const at::Tensor& v, int64_t block, const at::Tensor& rows,
                           const GroupFactor& factor) {
  const c10::SymInt n = logits.sym_size(3), groups = (n + (block - 1)) / block;
  const c10::SymInt missing = groups * block - n;
  const at::Tensor row = rows.view({1, 1, -1, 1}), own = row.floor_divide(block);
  const at::Tensor key = at::arange(at::Scalar(n), rows.options()),
                   group = at::arange(at::Scalar(groups), rows.options());
  const at::Tensor past = group < own;  // (1, 1, m, G)
  const at::Tensor here =
      at::logical_and(at::logical_and(key.floor_divide(block) == own, key <= row), key.remainder(block) != block - 1);

  // Inner states, finished: a block that is not past gives 0, whatever its keys and values hold.
  const at::Tensor seen = key.floor_divide(block) < own;
  at::Tensor padded =
      at::constant_pad_nd_symint(logits.masked_fill(seen.logical_not(), 0), std::vector<c10::SymInt>{0, missing});
  padded = padded.unflatten_symint(3, std::vector<c10::SymInt>{groups, block});  // (B, H, m, G, b)
  const at::Tensor inner = at::softmax(padded.slice(4, 0, block - 1), -1).transpose(2, 3).contiguous();
  const at::Tensor values = at::constant_pad_nd_symint(v, std::vector<c10::SymInt>{0, 0, 0, missing})
                                .unflatten_symint(2, std::vector<c10::SymInt>{groups, block})
                                .slice(3, 0, block - 1)
                                .contiguous();
  const at::Tensor u = at::matmul(inner, values).transpose(2, 3);  // (B, H, m, G, Dv)
  const at::Tensor states = u.masked_fill(past.logical_not().unsqueeze(-1), 0);

  // Absorbed outside, each as one key; beside them the keys of the row's own block.
  const at::Tensor both = masked_softmax(at::cat({padded.select(4, block - 1), logits}, -1),
                                         at::cat({past, here.expand_symint({1, 1, rows.sym_size(0), n})}, -1));
  at::Tensor share = both.slice_symint(3, 0, groups);
  if (factor) share = factor(share);
  const at::Tensor absorbed = at::matmul(share.unsqueeze(3), states.contiguous()).squeeze(3);
  return absorbed + guarded_matmul(both.slice_symint(3, groups), {}, v, /*finite=*/false);
}

namespace {

/// softmax of logits (B, H, M, N) in two levels, rows the last M of the N keys.
at::Tensor landmark_softmax_op(const at::Tensor& logits, const at::Tensor& is_mem) {
  const bool fits = logits.dim() == 4 && is_mem.dim() == 2 && is_mem.scalar_type() == at::kBool &&
                    is_mem.sym_size(0) == logits.sym_size(0) && is_mem.sym_size(1) == logits.sym_size(3) &&
                    at::isFloatingType(logits.scalar_type());
  if (!fits || logits.sym_size(2) > logits.sym_size(3)) {
    std::ostringstream found;
    found << logits.sym_sizes() << " and " << is_mem.sym_sizes() << " " << toString(is_mem.scalar_type());
    fail("landmark_softmax", "logits (B, H, M, N) of a floating type, M <= N, and is_mem (B, N) bool", found.str());
  }
  const c10::SymInt M = logits.sym_size(2), N = logits.sym_size(3);
  const at::Tensor key = at::arange(at::Scalar(N), is_mem.options().dtype(at::kLong));
  const at::Tensor row = key.slice_symint(0, N - M);
  const at::Tensor section = landmark_sections(is_mem);
  const at::ScalarType type = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return landmark_softmax(logits.to(type), {is_mem, section, section.index_select(1, row), key <= row.unsqueeze(1)})
      .to(logits.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(regard, m) {
  m.def("landmark_softmax(Tensor logits, Tensor is_mem) -> Tensor", guarded<&landmark_softmax_op>);
}
TORCH_LIBRARY_IMPL(regard, FuncTorchBatchedDecomposition, m) {
  m.impl("landmark_softmax", guarded<&landmark_softmax_op>);
}

}  // namespace
}  // namespace regard::ops
