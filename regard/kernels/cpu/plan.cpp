#include "regard/kernels/cpu/plan.h"

#include "regard/kernels/cpu/checks.h"
#include "regard/kernels/cpu/normalizer_rows.h"

namespace regard::kernels {
namespace {

template <class T>
SideArray<T> side(const Array4<const T>& array, int64_t query_heads, int64_t heads, int64_t length, int64_t columns) {
  SideArray<T> s;
  s.array = array;
  s.heads = heads;
  s.group = heads > 0 ? query_heads / heads : 1;
  s.length = length;
  s.columns = s.width = columns;
  return s;
}

/// The call's own q and k, or the named operand.
template <class T>
DotOperand<T> operand_of(const Expr& expr, const Attention<T>& call) {
  const Node& node = expr.node();
  DotOperand<T> dot{expr, side(call.q, call.H, call.H, call.M, call.Dh),
                    side(call.k, call.H, call.Hk, call.N, call.Dh)};
  if (!node.name.empty()) {
    const Operand<T>& operand = find_operand(call.operands, node.name);
    dot.q = side(operand.q, call.H, operand.heads, call.M, operand.width);
    dot.k = side(operand.k, call.H, operand.heads, call.N, operand.width);
    dot.q.gradient = operand.q_gradient;
    dot.k.gradient = operand.k_gradient;
  }
  const int64_t columns = dot.q.columns;
  check_dot(node, columns, dot.q.heads, call.H);
  for (SideArray<T>* s : {&dot.q, &dot.k}) {
    s->begin = node.begin;
    s->width = (node.end < 0 ? columns : node.end) - node.begin;
    s->only_head = node.only_head;
  }
  return dot;
}

}  // namespace

template <class T>
Plan<T>::Plan(const Attention<T>& attention) : call(attention), pairs(expressions_of(*attention.spec)) {
  check_call(call);
  static const Expr plain_score = scale() * dot(), product = dot();  // one node, so that the cache finds it again
  plain = !pairs.weight.defined() && same(pairs.score, plain_score);
  if (plain) pairs.score = product;
  exponential = is_exponential(call.spec->normalizer);
  space = {call.B, call.H, call.M, call.N, call.query_offset, call.scale};
  blocks = BlockList::take(pairs, space, call.captures);
  if (!blocks) sequences = Sequences::take(pairs, space, call.captures);
  if (pairs.masked() && pairs.counted.pointer() == pairs.keep.pointer()) {
    band = band_of(pairs.keep);
    band_of_places = !band && sequences;
    if (band_of_places) band = sequences->band_of(pairs.keep, space, call.captures);
  }
  for (const Expr& dot : cached_programs(pairs, Side::queries, false, {})->dots) dots.push_back(operand_of(dot, call));
  v = side(call.v, call.H, call.Hk, call.N, call.Dv);
}

template <class T>
BoundPrograms bind_programs(const Plan<T>& plan, Side lanes, Derivatives derivatives) {
  std::vector<std::string> wanted;
  if (derivatives == Derivatives::captures) {
    for (const Capture& capture : plan.call.captures) {
      if (capture.gradient != nullptr) wanted.push_back(capture.name);
    }
  }
  BoundPrograms bound{cached_programs(plan.pairs, lanes, derivatives != Derivatives::none, wanted), {}, {}};
  bound.open = bind_reads(bound.programs->open, plan.call.captures, plan.space);
  bound.masked = bind_reads(bound.programs->masked, plan.call.captures, plan.space);
  return bound;
}

template struct Plan<float>;
template struct Plan<double>;
template BoundPrograms bind_programs(const Plan<float>&, Side, Derivatives);
template BoundPrograms bind_programs(const Plan<double>&, Side, Derivatives);

}  // namespace regard::kernels
