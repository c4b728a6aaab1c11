#include "regard/ops/evaluate.h"

#include <algorithm>
#include <sstream>

#include "regard/base/error.h"

namespace regard::ops {
namespace {

at::ScalarType dtype_of(Type type, at::ScalarType real) {
  switch (type) {
    case Type::boolean: return at::kBool;
    case Type::integer: return at::kLong;
    case Type::real: return real;
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

}  // namespace

Evaluation::Evaluation(const Call& call, const Rows& rows)
    : call_(call),
      rows_(rows),
      plan_(plan_of(call.spec)),
      real_(call.q.options().dtype(call.compute()).requires_grad(std::nullopt)),
      integer_(real_.dtype(at::kLong)),
      memo_(plan_.graph.entries.size()) {}

at::Tensor Evaluation::value(int entry) {
  if (entry < 0) return {};
  auto& memo = memo_[static_cast<size_t>(entry)];
  if (!memo.defined()) memo = compute(entry);
  return memo;
}

at::Tensor Evaluation::keep() {
  if (plan_.keep_all) return {};
  in_mask_ = true;
  const at::Tensor mask = value(plan_.keep);
  in_mask_ = false;
  return mask;
}

at::Tensor Evaluation::counted() {
  if (plan_.counted_as_keep) return keep();
  in_mask_ = true;
  const at::Tensor mask = value(plan_.counted);
  in_mask_ = false;
  return mask;
}

at::Tensor Evaluation::index_range(const c10::SymInt& length, int64_t dim) {
  std::vector<c10::SymInt> shape(4, 1);
  shape[static_cast<size_t>(dim)] = length;
  return at::arange(c10::Scalar(length), integer_).view_symint(shape);
}

at::Tensor Evaluation::compute(int entry) {
  const auto& e = plan_.graph.entries[static_cast<size_t>(entry)];
  const Node& node = e.expr.node();
  const auto number = [&](const c10::SymInt& n) { return at::full({}, c10::Scalar(n), integer_); };
  switch (node.op) {
    case Op::constant: return at::full({}, node.number, real_.dtype(dtype_of(node.type, call_.compute())));
    case Op::scale: return at::full({}, call_.scale(), real_);
    case Op::dot: return dot(node);
    case Op::batch: return index_range(call_.B(), 0);
    case Op::head: return index_range(call_.H(), 1);
    case Op::row: return rows_.index(integer_).view_symint({1, 1, -1, 1});
    case Op::query: {
      const at::Tensor local = rows_.index(integer_).view_symint({1, 1, -1, 1});
      return is_zero(call_.query_offset) ? local : local.add(c10::Scalar(call_.query_offset));
    }
    case Op::column:
    case Op::key: return index_range(call_.N(), 3);
    case Op::batches: return number(call_.B());
    case Op::heads: return number(call_.H());
    case Op::queries: return number(call_.M());
    case Op::keys: return number(call_.N());
    case Op::capture: return read(entry);
    default: break;
  }
  std::vector<at::Tensor> args;
  args.reserve(e.args.size());
  for (const int arg : e.args) args.push_back(value(arg));
  return arithmetic(node, args);
}

at::Tensor Evaluation::arithmetic(const Node& node, const std::vector<at::Tensor>& args) {
  // Operands meet in the type of the result; comparisons in the wider type of the two.
  const auto to = [&](const at::Tensor& t, Type type) { return t.to(dtype_of(type, call_.compute())); };
  const auto common = [&] { return std::max(node.args[0].type(), node.args[1].type()); };
  const auto x = [&] { return to(args[0], node.type); };
  const auto y = [&] { return to(args[1], node.type); };
  const auto left = [&] { return to(args[0], common()); };
  const auto right = [&] { return to(args[1], common()); };
  switch (node.op) {
    case Op::add: return at::add(x(), y());
    case Op::sub: return at::sub(x(), y());
    case Op::mul: return at::mul(x(), y());
    case Op::div: return at::div(x(), y());
    case Op::floor_div:
    case Op::mod: {
      const bool divides = node.op == Op::floor_div;
      const auto quotient = [&](const at::Tensor& by) { return divides ? at::div(x(), by, "floor") : at::remainder(x(), by); };
      if (node.type != Type::integer || node.args[1].op() == Op::constant) return quotient(y());
      // An integer divided by a run-time 0 is 0 everywhere: masked pairs often hold one.
      const at::Tensor none = y().eq(0);
      return quotient(y().masked_fill(none, 1)).masked_fill(none, 0);
    }
    case Op::neg: return at::neg(x());
    case Op::min: return at::minimum(x(), y());
    case Op::max: return at::maximum(x(), y());
    case Op::abs: return at::abs(x());
    case Op::floor: return at::floor(x());
    case Op::exp: return at::exp(x());
    case Op::log: return at::log(x());
    case Op::tanh: return at::tanh(x());
    case Op::sigmoid: return at::sigmoid(x());
    case Op::sqrt: return at::sqrt(x());
    case Op::pow: return at::pow(x(), y());
    case Op::cos: return at::cos(x());
    case Op::sin: return at::sin(x());
    case Op::lt: return at::lt(left(), right());
    case Op::le: return at::le(left(), right());
    case Op::gt: return at::gt(left(), right());
    case Op::ge: return at::ge(left(), right());
    case Op::eq: return at::eq(left(), right());
    case Op::ne: return at::ne(left(), right());
    case Op::logical_and: return at::logical_and(args[0], args[1]);
    case Op::logical_or: return at::logical_or(args[0], args[1]);
    case Op::logical_not: return at::logical_not(args[0]);
    case Op::where: return at::where(args[0], to(args[1], node.type), to(args[2], node.type));
    case Op::cast:
      // A float becomes an integer toward zero, as in torch.
      return to(args[0], node.type);
    default: fail("attention", "an operation", name_of(node.op));
  }
}

// ---- dots ---------------------------------------------------------------------------------------

std::pair<at::Tensor, at::Tensor> Evaluation::dot_operands(const Node& node) {
  at::Tensor q = call_.q, k = call_.k;
  if (!node.name.empty()) {
    const size_t at = 2 * static_cast<size_t>(position(call_.spec->operands(), node.name));
    q = call_.operands[at];
    k = call_.operands[at + 1];
  }
  q = rows_.of(q, 2);
  if (node.only_head >= 0) {
    q = q.narrow(1, node.only_head, 1);
    k = k.narrow(1, node.only_head, 1);
  }
  if (node.end >= 0) {
    q = q.slice(3, node.begin, node.end);
    k = k.slice(3, node.begin, node.end);
  }
  return {q.to(call_.compute()), k.to(call_.compute())};
}

at::Tensor Evaluation::dot(const Node& node) {
  auto [q, k] = dot_operands(node);
  const bool one_head = node.only_head >= 0;
  if (!one_head) {
    q = repeat_heads(q, call_.H());
    k = repeat_heads(k, call_.H());
  }
  if (call_.finite) return at::matmul(q, k.transpose(-2, -1));
  // A non-finite query or key makes its own scores NaN; its zero gradient must not meet the other side's NaN.
  const at::Tensor bad_q = at::isfinite(q.detach()).all(-1, true).logical_not();
  const at::Tensor bad_k = at::isfinite(k.detach()).all(-1, true).logical_not();
  const bool known = concrete(q) && concrete(k);
  if (known && !bad_q.any().item<bool>() && !bad_k.any().item<bool>()) return at::matmul(q, k.transpose(-2, -1));
  const at::Tensor s = at::matmul(at::where(bad_q, 0, q), at::where(bad_k, 0, k).transpose(-2, -1));
  return at::where(at::logical_or(bad_q, bad_k.transpose(-2, -1)), std::numeric_limits<double>::quiet_NaN(), s);
}

Evaluation::DotGradient Evaluation::dot_gradient(int entry, const at::Tensor& d) {
  const Node& node = plan_.graph.entries[static_cast<size_t>(entry)].expr.node();
  auto [q, k] = dot_operands(node);
  const c10::SymInt own_heads = k.sym_size(1), q_heads = q.sym_size(1);
  at::Tensor dq, dk;
  if (node.only_head >= 0) {
    dq = guarded_matmul(d, {}, k, call_.finite).sum(1, true);
    dk = guarded_matmul(d.transpose(-2, -1), {}, q, call_.finite).sum(1, true);
  } else {
    dq = sum_heads(guarded_matmul(d, {}, repeat_heads(k, call_.H()), call_.finite), q_heads);
    dk = sum_heads(guarded_matmul(d.transpose(-2, -1), {}, repeat_heads(q, call_.H()), call_.finite), own_heads);
  }
  // Back to the full width and heads of the operand.
  const int operand = node.name.empty() ? -1 : position(call_.spec->operands(), node.name);
  const at::Tensor& whole = operand < 0 ? call_.q : call_.operands[2 * static_cast<size_t>(operand)];
  if (node.end >= 0) {
    const std::vector<int64_t> pad = {node.begin, whole.size(3) - node.end};
    dq = at::constant_pad_nd(dq, pad);
    dk = at::constant_pad_nd(dk, pad);
  }
  if (node.only_head >= 0) {
    const std::vector<int64_t> pad = {0, 0, 0, 0, node.only_head, whole.size(1) - node.only_head - 1};
    dq = at::constant_pad_nd(dq, pad);
    dk = at::constant_pad_nd(dk, pad);
  }
  return {operand, dq, dk};
}

// ---- captures -----------------------------------------------------------------------------------

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
      case Op::batch: axis = 0; break;
      case Op::head: axis = 1; break;
      case Op::row: axis = 2; break;
      case Op::query: axis = is_zero(call_.query_offset) ? 2 : -2; break;
      case Op::column:
      case Op::key: axis = 3; break;
      case Op::constant: axis = -1; break;
      default: axis = -2;
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
  at::Tensor t = call_.captures[static_cast<size_t>(position(call_.spec->captures(), node.name))]
                     .to(dtype_of(node.type, call_.compute()));
  const c10::SymInt lengths[4] = {call_.B(), call_.H(), call_.M(), call_.N()};
  if (const auto axes = plain_axes(entry)) {
    for (int64_t d = t.dim() - 1; d >= 0; --d)
      if ((*axes)[static_cast<size_t>(d)] < 0)
        t = t.select(d, static_cast<int64_t>(
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
    if (size == 0) empty = true;
    else index[d] = index[d].clamp(0, c10::Scalar(size - 1));
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
    if (std::find(axes.begin(), axes.end(), axis) == axes.end()) summed.push_back(axis);
    else followed.push_back(axis);
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
      before[i] = static_cast<int64_t>(
          plan_.graph.entries[static_cast<size_t>(read.args[i])].expr.node().number);
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

// ---- helpers ------------------------------------------------------------------------------------

at::Tensor reduce_to(const at::Tensor& t, c10::SymIntArrayRef sizes) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (sizes[static_cast<size_t>(d)] == 1 && t.sym_size(d) != 1) dims.push_back(d);
  return dims.empty() ? t : t.sum(dims, true);
}

at::Tensor pad_to(const at::Tensor& t, const std::vector<c10::SymInt>& before, c10::SymIntArrayRef sizes) {
  std::vector<c10::SymInt> pads;
  bool any = false;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {   // constant_pad_nd lists the last dimension first
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
