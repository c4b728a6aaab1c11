#include "regard/kernels/cpu/sequences.h"

#include <algorithm>

namespace regard::kernels {
namespace {

/// A captured row of integers, one a token: name[batch(), x] or name[x] with x = row() or column(), or what is the same.
struct TokenRead {
  Expr expr;
  Op token = Op::row;
};

std::optional<TokenRead> token_read(const Expr& expr, const PairSpace& space) {
  const Node& node = expr.node();
  if (node.op != Op::capture || node.type != Type::integer || node.args.empty() || node.args.size() > 2) {
    return std::nullopt;
  }
  const Expr& first = node.args.front();
  if (node.args.size() == 2 && first.op() != Op::batch && !first.is_constant(0)) return std::nullopt;
  Op token = node.args.back().op();
  if (token == Op::query && space.query_offset == 0) token = Op::row;
  if (token == Op::key) token = Op::column;
  if (token != Op::row && token != Op::column) return std::nullopt;
  return TokenRead{expr, token};
}

/// The numbers of the call's tokens; empty where the capture does not hold them.
std::vector<int64_t> numbers_of(const TokenRead& read, const PairSpace& space, const std::vector<Capture>& captures) {
  const Capture& capture = find_capture(captures, read.expr.node().name);
  const int64_t length = read.token == Op::row ? space.queries : space.keys;
  const size_t rank = read.expr.node().args.size();
  if (capture.sizes.size() != rank || capture.sizes.back() < length || (rank == 2 && capture.sizes[0] < 1)) return {};
  std::vector<int64_t> numbers(static_cast<size_t>(length));
  const int64_t stride = capture.strides.back();
  for (int64_t t = 0; t < length; ++t) {
    if (capture.element == Element::int64) {
      numbers[static_cast<size_t>(t)] = static_cast<const int64_t*>(capture.data)[t * stride];
    } else if (capture.element == Element::int32) {
      numbers[static_cast<size_t>(t)] = static_cast<const int32_t*>(capture.data)[t * stride];
    } else {
      return {};
    }
  }
  return numbers;
}

struct Ids {
  Expr rest;
  TokenRead query, key;
};

std::optional<Ids> ids_of(const Expr& equal, const Expr& rest, const PairSpace& space) {
  if (equal.op() != Op::eq) return std::nullopt;
  const auto a = token_read(equal.node().args[0], space), b = token_read(equal.node().args[1], space);
  if (!a || !b || a->token == b->token) return std::nullopt;
  return a->token == Op::row ? Ids{rest, *a, *b} : Ids{rest, *b, *a};
}

std::optional<Ids> taken(const Expr& keep, const PairSpace& space) {
  static const Expr every_pair(true);  // one node, so that the cache of programs finds it again
  if (const auto alone = ids_of(keep, every_pair, space)) return alone;
  if (keep.op() != Op::logical_and) return std::nullopt;
  const auto& args = keep.node().args;
  const auto second = ids_of(args[1], args[0], space);
  return second ? second : ids_of(args[0], args[1], space);
}

/// Where each number begins, for numbers that never fall; every number in `all` has an entry.
std::vector<int64_t> starts_of(const std::vector<int64_t>& numbers, const std::vector<int64_t>& all) {
  std::vector<int64_t> starts;
  for (const int64_t number : all)
    starts.push_back(std::lower_bound(numbers.begin(), numbers.end(), number) - numbers.begin());
  starts.push_back(static_cast<int64_t>(numbers.size()));
  return starts;
}

/// Whether a token's number is its place behind the start of its sequence.
bool counts_from(const std::vector<int64_t>& numbers, const std::vector<int64_t>& starts) {
  if (numbers.empty()) return false;
  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    for (int64_t t = starts[s]; t < starts[s + 1]; ++t)
      if (numbers[static_cast<size_t>(t)] != t - starts[s]) return false;
  }
  return true;
}

}  // namespace

std::optional<Sequences> Sequences::take(PairExpressions& pairs, const PairSpace& space,
                                         const std::vector<Capture>& captures) {
  if (space.batches != 1 || space.queries == 0 || space.keys == 0) return std::nullopt;
  const auto keep = taken(pairs.keep, space);
  if (!keep) return std::nullopt;
  const bool apart = pairs.counted.pointer() != pairs.keep.pointer();
  std::optional<Ids> counted = keep;
  if (apart) counted = taken(pairs.counted, space);
  if (!counted || !same(counted->query.expr, keep->query.expr) || !same(counted->key.expr, keep->key.expr)) {
    return std::nullopt;
  }
  const auto of_queries = numbers_of(keep->query, space, captures), of_keys = numbers_of(keep->key, space, captures);
  if (of_queries.empty() || of_keys.empty()) return std::nullopt;
  if (!std::is_sorted(of_queries.begin(), of_queries.end())) return std::nullopt;
  if (!std::is_sorted(of_keys.begin(), of_keys.end())) return std::nullopt;
  std::vector<int64_t> all;
  std::set_union(of_queries.begin(), of_queries.end(), of_keys.begin(), of_keys.end(), std::back_inserter(all));
  all.erase(std::unique(all.begin(), all.end()), all.end());
  Sequences sequences{starts_of(of_queries, all), starts_of(of_keys, all)};
  pairs.keep = keep->rest;
  pairs.counted = apart ? counted->rest : keep->rest;
  if (apart && same(pairs.counted, pairs.keep)) pairs.counted = pairs.keep;
  return sequences;
}

int64_t Sequences::of_query(int64_t row) const {
  return std::upper_bound(query_starts.begin(), query_starts.end(), row) - query_starts.begin() - 1;
}

std::optional<Band> Sequences::band_of(const Expr& keep, const PairSpace& space,
                                       const std::vector<Capture>& captures) const {
  std::vector<std::pair<Expr, Expr>> places;
  for (const Graph::Entry& entry : flatten({keep}).entries) {
    const auto read = token_read(entry.expr, space);
    if (!read) continue;
    const bool of_query = read->token == Op::row;
    if (!counts_from(numbers_of(*read, space, captures), of_query ? query_starts : key_starts)) return std::nullopt;
    places.emplace_back(entry.expr, of_query ? query() : key());
  }
  // The leaves themselves count from the beginning of the row.
  if (places.empty() && (dependence(keep).query || dependence(keep).key)) return std::nullopt;
  for (const Graph::Entry& entry : flatten({keep}).entries)
    if (entry.expr.op() == Op::query || entry.expr.op() == Op::key) return std::nullopt;
  return regard::band_of(substitute(keep, places));
}

}  // namespace regard::kernels
