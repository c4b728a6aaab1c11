// Reads of captured tensors, their bounds, and the gradients that flow back into them.
#include <algorithm>
#include <sstream>

#include "regard/base/error.h"
#include "regard/ops/evaluate.h"

namespace regard::ops {
// A read such as bias[b, h, i, j], slopes[h] or mask[0, 0, i, j] is a view: the axis (0..3 of B, H, M, N) that each
// dimension follows, -1 for a constant index. Nothing when an index is computed or does not cover its dimension.
std::optional<std::vector<int64_t>> Evaluation::plain_axes(int entry) const {
  const auto& e = plan_.graph.entries[static_cast<size_t>(entry)];
  const at::Tensor& t = call_.captures[static_cast<size_t>(position(call_.spec->captures(), e.expr.node().name))];
  const c10::SymInt lengths[4] = {call_.B(), call_.H(), call_.M(), call_.N()};
  std::vector<int64_t> axes;
  for (size_t d = 0; d < e.args.size(); ++d) {
    const Node& index = plan_.graph.entries[static_cast<size_t>(e.args[d])].expr.node();
    const c10::SymInt size = t.sym_size(static_cast<int64_t>(d));
    int64_t axis;
    switch (index.op) {
      case Op::batch:
        axis = 0;
        break;
      case Op::head:
        axis = 1;
        break;
      case Op::row:
        axis = 2;
        break;
      case Op::query:
        axis = is_zero(call_.query_offset) ? 2 : -2;
        break;
      case Op::column:
      case Op::key:
        axis = 3;
        break;
      case Op::constant:
        axis = -1;
        break;
      default:
        axis = -2;
    }
    if (axis == -2) return std::nullopt;
    if (axis == -1 && (index.number < 0 || size <= static_cast<int64_t>(index.number))) return std::nullopt;
    if (axis >= 0) {
      if (std::find(axes.begin(), axes.end(), axis) != axes.end() || size < lengths[axis]) return std::nullopt;
    }
    axes.push_back(axis);
  }
  return axes;
}

std::pair<int, int64_t> Evaluation::row_dim(int entry) const {
  const Node& node = plan_.graph.entries[static_cast<size_t>(entry)].expr.node();
  if (node.op != Op::capture) return {-1, -1};
  const int capture = position(call_.spec->captures(), node.name);
  const auto axes = plain_axes(entry);
  if (!axes) return {capture, -1};
  const auto at = std::find(axes->begin(), axes->end(), 2);
  return {capture, at == axes->end() ? -1 : at - axes->begin()};
}

std::vector<at::Tensor> Evaluation::indices(int entry) {
  const auto& e = plan_.graph.entries[static_cast<size_t>(entry)];
  std::vector<at::Tensor> out;
  for (const int arg : e.args) out.push_back(value(arg));
  return out;
}

at::Tensor Evaluation::read(int entry) {
  const auto& e = plan_.graph.entries[static_cast<size_t>(entry)];
  const Node& node = e.expr.node();
  at::Tensor t = call_.captures[static_cast<size_t>(position(call_.spec->captures(), node.name))].to(
      dtype_of(node.type, call_.compute()));
  const c10::SymInt lengths[4] = {call_.B(), call_.H(), call_.M(), call_.N()};
  if (const auto axes = plain_axes(entry)) {
    for (int64_t d = t.dim() - 1; d >= 0; --d)
      if ((*axes)[static_cast<size_t>(d)] < 0)
        t = t.select(d,
                     static_cast<int64_t>(
                         plan_.graph.entries[static_cast<size_t>(e.args[static_cast<size_t>(d)])].expr.node().number));
    std::vector<int64_t> kept;
    for (const int64_t axis : *axes)
      if (axis >= 0) kept.push_back(axis);
    std::vector<int64_t> order(kept.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return kept[a] < kept[b]; });
    t = t.permute(order);
    for (int64_t axis = 0, d = 0; axis < 4; ++axis) {
      if (std::find(kept.begin(), kept.end(), axis) == kept.end()) {
        t = t.unsqueeze(axis);
      } else {
        t = axis == 2 ? rows_.of(t, axis) : t.slice_symint(axis, 0, lengths[axis]);
        ++d;
      }
    }
    return t;
  }
  if (e.args.empty()) return t;
  auto index = indices(entry);
  at::Tensor outside;
  bool empty = false;
  for (size_t d = 0; d < index.size(); ++d) {
    const c10::SymInt size = t.sym_size(static_cast<int64_t>(d));
    const at::Tensor out = at::logical_or(index[d].lt(0), index[d].ge(c10::Scalar(size)));
    checks_.push_back({node.name, static_cast<int64_t>(d), size, out, in_mask_});
    outside = outside.defined() ? at::logical_or(outside, out) : out;
    if (size == 0)
      empty = true;
    else
      index[d] = index[d].clamp(0, c10::Scalar(size - 1));
  }
  if (empty) return at::zeros_symint(outside.sym_sizes(), t.options());
  c10::List<std::optional<at::Tensor>> list;
  for (const auto& i : index) list.push_back(i);
  return at::where(outside, at::zeros({}, t.options()), at::index(t, list));
}

Evaluation::CaptureGradient Evaluation::capture_gradient(int entry, const at::Tensor& d) {
  const auto& e = plan_.graph.entries[static_cast<size_t>(entry)];
  const int capture = position(call_.spec->captures(), e.expr.node().name);
  if (e.args.empty()) return {capture, d.sum(), -1};
  const at::Tensor& t = call_.captures[static_cast<size_t>(capture)];
  if (t.sym_numel() == 0) return {capture, at::zeros_symint(t.sym_sizes(), real_), -1};
  if (!rows_.chosen.defined())
    if (const auto axes = plain_axes(entry)) return place(capture, e, *axes, d);
  return {capture, scatter(t, indices(entry), d), -1};
}

// The transpose of a plain read: sum over the axes that it does not follow, then back to the capture's dimensions.
Evaluation::CaptureGradient Evaluation::place(int capture, const Graph::Entry& read, const std::vector<int64_t>& axes,
                                              const at::Tensor& d) {
  std::vector<int64_t> summed, order, followed;
  for (const int64_t axis : {0, 1, 2, 3})
    if (std::find(axes.begin(), axes.end(), axis) == axes.end())
      summed.push_back(axis);
    else
      followed.push_back(axis);
  at::Tensor g = summed.empty() ? d : d.sum(summed);
  for (const int64_t axis : axes)
    if (axis >= 0) order.push_back(std::find(followed.begin(), followed.end(), axis) - followed.begin());
  g = g.permute(order);
  const at::Tensor& t = call_.captures[static_cast<size_t>(capture)];
  std::vector<c10::SymInt> before(axes.size(), 0), sizes = t.sym_sizes().vec();
  int64_t row_dim = -1;
  for (size_t i = 0; i < axes.size(); ++i) {
    if (axes[i] < 0) {
      g = g.unsqueeze(static_cast<int64_t>(i));
      before[i] = static_cast<int64_t>(plan_.graph.entries[static_cast<size_t>(read.args[i])].expr.node().number);
    } else if (axes[i] == 2) {
      row_dim = static_cast<int64_t>(i);
      sizes[i] = g.sym_size(row_dim);
    }
  }
  return {capture, pad_to(g, before, sizes), row_dim};
}

at::Tensor Evaluation::scatter(const at::Tensor& like, std::vector<at::Tensor> index, const at::Tensor& d) {
  const at::Tensor zero = at::zeros_symint(like.sym_sizes(), real_);
  at::Tensor spread = at::zeros({}, integer_), outside = at::zeros({}, integer_.dtype(at::kBool));
  for (size_t i = 0; i < index.size(); ++i) {
    const c10::SymInt size = like.sym_size(static_cast<int64_t>(i));
    outside = at::logical_or(outside, at::logical_or(index[i].lt(0), index[i].ge(c10::Scalar(size))));
    index[i] = index[i].clamp(0, c10::Scalar(size - 1));
    spread = at::add(spread, index[i]);
  }
  // Sum over the axes on which no index depends, then one scatter.
  at::Tensor sums = at::where(outside, at::zeros({}, real_), d);
  sums = spread.dim() == 4 ? reduce_to(sums, spread.sym_sizes()) : sums.sum();
  c10::List<std::optional<at::Tensor>> list;
  for (const auto& i : index) list.push_back(i.expand_symint(sums.sym_sizes()));
  return at::index_put(zero, list, sums, /*accumulate=*/true);
}

void Evaluation::check_ranges() {
  const at::Tensor kept = keep();
  for (const auto& check : checks_) {
    if (!concrete(check.outside) || (kept.defined() && !concrete(kept))) continue;
    const at::Tensor wrong = check.in_mask || !kept.defined() ? check.outside : at::logical_and(check.outside, kept);
    if (!wrong.any().item<bool>()) continue;
    std::ostringstream expected;
    expected << "every index into dimension " << check.dim << " of capture '" << check.name << "' in [0, " << check.size
             << ")" << (check.in_mask ? "" : " where the pair exists");
    fail("attention", expected.str(), "an index out of range");
  }
}

}  // namespace regard::ops
