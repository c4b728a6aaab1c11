#include "regard/ops/executor_place.h"

#include "regard/algebra/interval.h"
#include "regard/base/error.h"

namespace regard::ops {
namespace {

using Replacements = std::vector<std::pair<Expr, Expr>>;

/// A known number as a constant, which keeps capture classes and block masks sharp; a symbolic one as a capture.
Expr number(const c10::SymInt& value, const char* name, AttentionArguments& arguments) {
  if (const auto known = value.maybe_as_int()) return constant(static_cast<double>(*known), Type::integer);
  arguments.named_captures[name] = at::scalar_tensor(at::Scalar(value), at::TensorOptions().dtype(at::kLong));
  return capture(name, Type::integer, {});
}

AttentionSpec replaced(const AttentionSpec& spec, const Replacements& replacements) {
  const auto in = [&](const Expr& expr) { return expr.defined() ? substitute(expr, replacements) : expr; };
  AttentionSpec out = spec;
  out.score = in(spec.score);
  out.keep = in(spec.keep);
  out.weight = in(spec.weight);
  out.counted = in(spec.counted);
  for (auto& pair : out.pair_outputs) {
    pair.value = in(pair.value);
    pair.bucket = in(pair.bucket);
  }
  return out;
}

/// The expression with every capture replaced by one value of which nothing is known.
Expr without_captures(const Expr& expr) {
  Replacements replacements;
  for (const auto& entry : flatten({expr}).entries)
    if (entry.expr.op() == Op::capture) replacements.emplace_back(entry.expr, capture("any", entry.expr.type(), {}));
  return replacements.empty() ? expr : substitute(expr, replacements);
}

bool zero(const c10::SymInt& value) { return value.maybe_as_int() == 0; }

/// Positions of one side. `local`: the index that captures are read at; `whole`: the index in the sequence.
struct Side {
  Expr index;     ///< row() or column()
  Expr position;  ///< query() or key()
  c10::SymInt local, whole;
  const char* name;
};

void move(const Side& side, bool dropped, Positions& positions, AttentionArguments& arguments,
          Replacements& replacements) {
  if (zero(side.local) && zero(side.whole)) return;
  const std::string local_name = std::string("place.") + side.name + "_local";
  const std::string whole_name = std::string("place.") + side.name;
  const Expr local = zero(side.local) ? side.index : side.index + number(side.local, local_name.c_str(), arguments);
  replacements.emplace_back(side.index, local);
  if (!positions.tensor.empty()) {
    require(!dropped, "attention", "positions that are not a tensor with dropout in parts", positions.tensor);
    replacements.emplace_back(side.position, positions.at(local));
    return;
  }
  const Expr whole = zero(side.whole) ? side.index : side.index + number(side.whole, whole_name.c_str(), arguments);
  replacements.emplace_back(side.position, positions.identity() ? whole : positions.at(whole));
  // The positions say so too: what is keyed by them (dropout) reads them there.
  if (const auto known = side.whole.maybe_as_int()) positions.offset += positions.stride * *known;
}

}  // namespace

AttentionArguments by_name(const AttentionSpec& spec, const AttentionArguments& given) {
  AttentionArguments out = in_order(spec, given);
  const auto captures = spec.captures(), operands = spec.operands();
  require(out.captures.size() == captures.size() && out.operands.size() == 2 * operands.size(), "attention",
          ("the " + std::to_string(captures.size()) + " captures and " + std::to_string(operands.size()) +
           " pairs of operands that the spec reads")
              .c_str(),
          std::to_string(out.captures.size()) + " and " + std::to_string(out.operands.size()) + " tensors");
  for (size_t i = 0; i < captures.size(); ++i) out.named_captures[captures[i]] = out.captures[i];
  for (size_t i = 0; i < operands.size(); ++i)
    out.named_operands[operands[i]] = {out.operands[2 * i], out.operands[2 * i + 1]};
  out.captures.clear();
  out.operands.clear();
  return out;
}

AttentionSpec with_lengths(const AttentionSpec& spec, const c10::SymInt& queries, const c10::SymInt& keys,
                           AttentionArguments& arguments) {
  const Expr all_keys = number(keys, "place.keys", arguments);
  AttentionSpec out =
      replaced(spec, {{regard::queries(), number(queries, "place.queries", arguments)}, {regard::keys(), all_keys}});
  if (out.normalizer.divisor == Normalizer::Divisor::keys) {
    // relu(s) / N = relu(s / N)
    out.score = (out.score.defined() ? out.score : scale() * dot()) / cast(max(all_keys, Expr(1)), Type::real);
    out.normalizer.divisor = Normalizer::Divisor::one;
  }
  return out;
}

AttentionSpec placed(const AttentionSpec& spec, const Place& place, AttentionArguments& arguments) {
  const bool dropped = spec.dropout > 0;
  Replacements replacements;
  AttentionSpec out = with_lengths(spec, place.queries, place.keys, arguments);
  c10::SymInt query = place.query;
  if (!(zero(place.row) && zero(place.query)) && spec.positions.query.identity()) {
    query = query + arguments.query_offset;  // the offset of the call becomes part of the position
    arguments.query_offset = 0;
  }
  move({row(), regard::query(), place.row, query, "query"}, dropped, out.positions.query, arguments, replacements);
  move({column(), regard::key(), place.column, place.key, "key"}, dropped, out.positions.key, arguments, replacements);
  require(!dropped || (place.key.maybe_as_int() && place.query.maybe_as_int()), "attention",
          "known lengths with dropout in parts", "symbolic ones");
  return replacements.empty() ? out : replaced(out, replacements);
}

bool holds_no_pair(const AttentionSpec& spec, const AttentionArguments& arguments, const c10::SymInt& rows,
                   const c10::SymInt& columns) {
  const auto M = rows.maybe_as_int(), N = columns.maybe_as_int(), offset = arguments.query_offset.maybe_as_int();
  if (!M || !N || !offset) return false;
  if (*M == 0 || *N == 0) return true;
  Tile tile;
  tile.row_end = tile.queries = *M;
  tile.column_end = tile.keys = *N;
  tile.query_offset = *offset;
  const AttentionSpec resolved = spec.resolved();
  for (const Expr& given : {resolved.keep, resolved.counted}) {
    const Expr mask = without_captures(given);
    const Dependence reads = dependence(mask);
    if (reads.batch || reads.head || truth(mask, tile, unknown_capture) != Truth::never) return false;
  }
  return true;
}

}  // namespace regard::ops
