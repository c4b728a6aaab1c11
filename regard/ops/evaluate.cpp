#include "regard/ops/evaluate.h"

#include <algorithm>
#include <sstream>

#include "regard/base/error.h"

namespace regard::ops {
Evaluation::Evaluation(const Call& call, const Rows& rows)
    : call_(call),
      rows_(rows),
      held_(plan_of(call.spec)),
      plan_(*held_),
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
    case Op::constant:
      return at::full({}, node.number, real_.dtype(dtype_of(node.type, call_.compute())));
    case Op::scale:
      return at::full({}, call_.scale(), real_);
    case Op::dot:
      return dot(node);
    case Op::batch:
      return index_range(call_.B(), 0);
    case Op::head:
      return index_range(call_.H(), 1);
    case Op::row:
      return rows_.index(integer_).view_symint({1, 1, -1, 1});
    case Op::query: {
      const at::Tensor local = rows_.index(integer_).view_symint({1, 1, -1, 1});
      return is_zero(call_.query_offset) ? local : local.add(c10::Scalar(call_.query_offset));
    }
    case Op::column:
    case Op::key:
      return index_range(call_.N(), 3);
    case Op::batches:
      return number(call_.B());
    case Op::heads:
      return number(call_.H());
    case Op::queries:
      return number(call_.M());
    case Op::keys:
      return number(call_.N());
    case Op::capture:
      return read(entry);
    default:
      break;
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
    case Op::add:
      return at::add(x(), y());
    case Op::sub:
      return at::sub(x(), y());
    case Op::mul:
      return at::mul(x(), y());
    case Op::div:
      return at::div(x(), y());
    case Op::floor_div:
    case Op::mod: {
      const bool divides = node.op == Op::floor_div;
      const auto quotient = [&](const at::Tensor& by) {
        return divides ? at::div(x(), by, "floor") : at::remainder(x(), by);
      };
      if (node.type != Type::integer || node.args[1].op() == Op::constant) return quotient(y());
      // An integer divided by a run-time 0 is 0 everywhere: masked pairs often hold one.
      const at::Tensor none = y().eq(0);
      return quotient(y().masked_fill(none, 1)).masked_fill(none, 0);
    }
    case Op::neg:
      return at::neg(x());
    case Op::min:
      return at::minimum(x(), y());
    case Op::max:
      return at::maximum(x(), y());
    case Op::abs:
      return at::abs(x());
    case Op::floor:
      return at::floor(x());
    case Op::exp:
      return at::exp(x());
    case Op::log:
      return at::log(x());
    case Op::tanh:
      return at::tanh(x());
    case Op::sigmoid:
      return at::sigmoid(x());
    case Op::sqrt:
      return at::sqrt(x());
    case Op::pow:
      return at::pow(x(), y());
    case Op::cos:
      return at::cos(x());
    case Op::sin:
      return at::sin(x());
    case Op::lt:
      return at::lt(left(), right());
    case Op::le:
      return at::le(left(), right());
    case Op::gt:
      return at::gt(left(), right());
    case Op::ge:
      return at::ge(left(), right());
    case Op::eq:
      return at::eq(left(), right());
    case Op::ne:
      return at::ne(left(), right());
    case Op::logical_and:
      return at::logical_and(args[0], args[1]);
    case Op::logical_or:
      return at::logical_or(args[0], args[1]);
    case Op::logical_not:
      return at::logical_not(args[0]);
    case Op::where:
      return at::where(args[0], to(args[1], node.type), to(args[2], node.type));
    case Op::cast:
      // A float becomes an integer toward zero, as in torch.
      return to(args[0], node.type);
    default:
      fail("attention", "an operation", name_of(node.op));
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
    const std::vector<c10::SymInt> pad = {node.begin, whole.sym_size(3) - node.end};
    dq = at::constant_pad_nd_symint(dq, pad);
    dk = at::constant_pad_nd_symint(dk, pad);
  }
  if (node.only_head >= 0) {
    const std::vector<c10::SymInt> pad = {0, 0, 0, 0, node.only_head, whole.sym_size(1) - node.only_head - 1};
    dq = at::constant_pad_nd_symint(dq, pad);
    dk = at::constant_pad_nd_symint(dk, pad);
  }
  return {operand, dq, dk};
}

}  // namespace regard::ops
