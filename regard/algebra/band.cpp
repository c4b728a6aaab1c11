#include "regard/algebra/band.h"

#include <algorithm>

namespace regard {
namespace {

/// query_factor * query() + key_factor * key() + constant, integers.
struct Linear {
  int64_t query = 0, key = 0, constant = 0;
};

Linear sum(const Linear& a, const Linear& b, int64_t sign) {
  return {a.query + sign * b.query, a.key + sign * b.key, a.constant + sign * b.constant};
}

std::optional<Linear> linear_of(const Expr& e) {
  if (e.type() != Type::integer) return std::nullopt;
  const Node& node = e.node();
  switch (node.op) {
    case Op::query:
      return Linear{1, 0, 0};
    case Op::key:
      return Linear{0, 1, 0};
    case Op::constant:
      return Linear{0, 0, static_cast<int64_t>(node.number)};
    case Op::neg: {
      const auto a = linear_of(node.args[0]);
      return a ? std::optional(sum({}, *a, -1)) : std::nullopt;
    }
    case Op::add:
    case Op::sub: {
      const auto a = linear_of(node.args[0]), b = linear_of(node.args[1]);
      return a && b ? std::optional(sum(*a, *b, node.op == Op::add ? 1 : -1)) : std::nullopt;
    }
    default:
      return std::nullopt;
  }
}

/// The band of linear >= 0.
std::optional<Band> band_of(const Linear& l) {
  Band band;
  if (l.query == 1 && l.key == -1) {
    band.high = l.constant;
  } else if (l.query == -1 && l.key == 1) {
    band.low = -l.constant;
  } else {
    return std::nullopt;
  }
  return band;
}

std::optional<Band> both(const std::optional<Band>& a, const std::optional<Band>& b) {
  if (!a || !b) return std::nullopt;
  return Band{std::max(a->low, b->low), std::min(a->high, b->high)};
}

/// greater - less >= 0, or > 0 where strict. |x| <= c is x <= c and -x <= c.
std::optional<Band> compare(const Expr& greater, const Expr& less, bool strict) {
  const Linear rest{0, 0, strict ? -1 : 0};
  if (less.op() == Op::abs) {
    const auto bound = linear_of(greater), x = linear_of(less.node().args[0]);
    if (!bound || !x) return std::nullopt;
    const Linear most = sum(*bound, rest, 1);
    return both(band_of(sum(most, *x, -1)), band_of(sum(most, *x, 1)));
  }
  const auto a = linear_of(greater), b = linear_of(less);
  return a && b ? band_of(sum(sum(*a, *b, -1), rest, 1)) : std::nullopt;
}

}  // namespace

std::optional<Band> band_of(const Expr& keep) {
  if (!keep.defined()) return std::nullopt;
  const auto& args = keep.node().args;
  switch (keep.op()) {
    case Op::ge:
      return compare(args[0], args[1], false);
    case Op::gt:
      return compare(args[0], args[1], true);
    case Op::le:
      return compare(args[1], args[0], false);
    case Op::lt:
      return compare(args[1], args[0], true);
    case Op::logical_and:
      return both(band_of(args[0]), band_of(args[1]));
    default:
      return std::nullopt;
  }
}

}  // namespace regard
