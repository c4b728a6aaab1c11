#include "regard/algebra/interval.h"

#include <cmath>
#include <limits>

#include "message.h"
#include "random_expr.h"
#include "regard/algebra/evaluate.h"
#include "regard/algebra/scalar.h"

namespace regard {
namespace {

Tile tile_of(int64_t r0, int64_t r1, int64_t c0, int64_t c1, int64_t offset = 0) {
  Tile tile;
  tile.row_begin = r0, tile.row_end = r1, tile.column_begin = c0, tile.column_end = c1;
  tile.queries = 64, tile.keys = 64, tile.query_offset = offset;
  return tile;
}

Pair pair_of(const Tile& tile, int64_t row, int64_t column) {
  return {tile.batch, tile.head,         row,       column, tile.batches, tile.heads, tile.queries,
          tile.keys,  tile.query_offset, tile.scale};
}

double captured(const std::string& name, int64_t index) {
  if (name == "flag") return index % 3 == 0;
  if (name == "map") return static_cast<double>((index * 7 + 3) % 11 - 4);
  if (name == "ids") return static_cast<double>(index < 0 ? -1 : index / 9);
  return static_cast<float>(std::sin(static_cast<double>(index) * 1.7 + static_cast<double>(name.size())) * 2);
}

/// The exact range over the box for narrow boxes, nothing for wide ones.
Interval captured_range(const std::string& name, const std::vector<Interval>& indices) {
  if (!(indices[0].high - indices[0].low < 100)) return Interval::everything();
  Interval found{1e300, -1e300};
  for (double index = indices[0].low; index <= indices[0].high; ++index) {
    const double value = captured(name, static_cast<int64_t>(index));
    found = {std::min(found.low, value), std::max(found.high, value)};
  }
  return found;
}

/// Evaluation in float32 after every operation on reals, as a kernel computes.
double evaluate_float(const Expr& expr, const Pair& pair, const LeafValues& leaves) {
  const Graph graph = flatten({expr});
  std::vector<double> values;
  for (const auto& entry : graph.entries) {
    const Node& node = entry.expr.node();
    const auto arg = [&](size_t i) { return values[static_cast<size_t>(entry.args[i])]; };
    double value = 0;
    if (node.op == Op::where)
      value = arg(0) != 0 ? arg(1) : arg(2);
    else if (node.op == Op::cast)
      value = cast_scalar(arg(0), node.type);
    else if (node.op == Op::capture)
      value = leaves.capture(node.name, {static_cast<int64_t>(arg(0))});
    else if (entry.args.empty())
      value = evaluate(entry.expr, pair, leaves);
    else
      value = apply_scalar(node.op, node.args[0].type(), arg(0), entry.args.size() > 1 ? arg(1) : 0);
    values.push_back(node.type == Type::real ? static_cast<double>(static_cast<float>(value)) : value);
  }
  return values.back();
}

bool inside(double value, const Interval& range) {
  if (std::isnan(value)) return std::isinf(range.low) && std::isinf(range.high);
  return value >= range.low && value <= range.high;
}

TEST(Interval, BoundsAreSound) {
  int narrow = 0;
  for (unsigned seed = 0; seed < 3000; ++seed) {
    RandomExpr random(seed);
    const int kind = random.below(3);
    const Expr expr = kind == 0 ? random.integer(4) : kind == 1 ? random.real(4) : random.boolean(4);
    if (dependence(expr).dot) continue;
    Tile tile = tile_of(random.below(20), 0, random.below(20), 0, random.below(9) - 4);
    tile.row_end = tile.row_begin + 1 + random.below(9);
    tile.column_end = tile.column_begin + 1 + random.below(9);
    tile.batch = 1, tile.head = 2, tile.scale = 0.3;
    const LeafValues leaves{
        {}, [](const std::string& name, const std::vector<int64_t>& index) { return captured(name, index[0]); }};
    const Interval range = bounds(expr, tile, captured_range);
    narrow += std::isfinite(range.low) && std::isfinite(range.high);
    Evaluator evaluator({expr});
    for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
      for (int64_t column = tile.column_begin; column < tile.column_end; ++column) {
        const Pair pair = pair_of(tile, row, column);
        const double exact = evaluator(pair, leaves), rounded = evaluate_float(expr, pair, leaves);
        ASSERT_TRUE(inside(exact, range)) << to_string(expr) << " = " << exact << " outside [" << range.low << ", "
                                          << range.high << "] at " << row << ", " << column << " seed " << seed;
        ASSERT_TRUE(inside(rounded, range)) << to_string(expr) << " = " << rounded << " in float32, outside ["
                                            << range.low << ", " << range.high << "] seed " << seed;
      }
    }
  }
  EXPECT_GT(narrow, 1200);  // it does say something
}

void expect_bounds(const Expr& expr, const Tile& tile, double low, double high) {
  const Interval range = bounds(expr, tile, unknown_capture);
  EXPECT_EQ(range.low, low) << to_string(expr);
  EXPECT_EQ(range.high, high) << to_string(expr);
}

TEST(Interval, AffineFormsAreExact) {
  const Tile tile = tile_of(8, 16, 4, 12, 100);
  expect_bounds(query() - key(), tile, 97, 111);
  expect_bounds(query() - row(), tile, 100, 100);
  expect_bounds(query() * 2 - row() - row() + key(), tile, 204, 211);
  expect_bounds(-(key() - query()) - query(), tile, -11, -4);
  expect_bounds(cast(query(), Type::real) - cast(row(), Type::real) * 1.0, tile, 100, 100);
  expect_bounds(abs(row() - column()), tile, 0, 11);
  expect_bounds(floor_div(row(), 8), tile, 1, 1);
  expect_bounds(row() % 8 - row(), tile, -8, -8);
  expect_bounds(row() % 16, tile, 8, 15);
  expect_bounds(row() % 5, tile, 0, 4);
  expect_bounds(row() % -5, tile, -4, 0);
  expect_bounds(floor_div(row(), -3), tile, -5, -3);
  expect_bounds(min(row(), 100) - row(), tile, 0, 0);
  expect_bounds(where(row() < 20, row(), 0) - row(), tile, 0, 0);
}

TEST(Interval, ComparesByTheDifference) {
  const Tile diagonal = tile_of(0, 8, 8, 16);
  EXPECT_EQ(truth(query() >= key(), diagonal, unknown_capture), Truth::never);
  EXPECT_EQ(truth(query() >= key() - 15, diagonal, unknown_capture), Truth::always);
  EXPECT_EQ(truth(query() + 3 < key() + query(), diagonal, unknown_capture), Truth::always);
  EXPECT_EQ(truth(query() == query(), diagonal, unknown_capture), Truth::always);
  EXPECT_EQ(truth(query() != key(), diagonal, unknown_capture), Truth::always);
  EXPECT_EQ(truth(query() + 8 == key(), diagonal, unknown_capture), Truth::sometimes);
  EXPECT_EQ(truth(floor_div(query(), 8) == floor_div(key(), 8), diagonal, unknown_capture), Truth::never);
  EXPECT_EQ(truth(query() >= key(), tile_of(0, 0, 0, 4), unknown_capture), Truth::never);
}

TEST(Interval, UnknownStaysUnknown) {
  const Tile tile = tile_of(0, 4, 0, 4);
  const double infinity = std::numeric_limits<double>::infinity();
  const Expr unknown = capture("t", Type::real, {row()}), number = capture("n", Type::integer, {row()});
  for (const Expr& expr :
       {unknown, max(unknown, 0.0), abs(unknown), exp(unknown), dot(), log(cast(row(), Type::real) - 1.0),
        unknown * 0.0, sqrt(-1.0 - cast(row(), Type::real)), cos(unknown), 1.0 / (cast(row(), Type::real) - 1.0)}) {
    expect_bounds(expr, tile, -infinity, infinity);
  }
  // NaN is not below infinity.
  EXPECT_EQ(truth(unknown <= infinity, tile, unknown_capture), Truth::sometimes);
  EXPECT_EQ(truth(unknown != unknown, tile, unknown_capture), Truth::sometimes);
  EXPECT_EQ(truth(row() % number >= 0, tile, unknown_capture), Truth::sometimes);
  expect_bounds(number % 4, tile, 0, 3);
  EXPECT_EQ(truth(max(number, 3) >= 3, tile, unknown_capture), Truth::always);
  EXPECT_EQ(truth((number > 3) & (row() > 9), tile, unknown_capture), Truth::never);
  EXPECT_EQ(truth((number > 3) | (row() < 9), tile, unknown_capture), Truth::always);
}

TEST(Interval, IntegersMayWrapAt32Bits) {
  const Tile tile = tile_of(0, 100000, 0, 4);
  EXPECT_EQ(truth(row() * row() >= 0, tile, unknown_capture), Truth::sometimes);
  EXPECT_EQ(truth(row() * 2 >= 0, tile, unknown_capture), Truth::always);
}

TEST(Interval, TruthNeedsABoolean) {
  EXPECT_EQ(message_of([] { truth(query(), {}, unknown_capture); }),
            "[truth] expected an expression of type bool; found int");
}

}  // namespace
}  // namespace regard
