#include "regard/algebra/expr.h"

#include <cmath>
#include <limits>

#include "message.h"
#include "random_expr.h"

namespace regard {
namespace {

TEST(Expr, PromotesAsTorchDoes) {
  EXPECT_EQ((query() + key()).type(), Type::integer);
  EXPECT_EQ((query() + 1.0).type(), Type::real);
  EXPECT_EQ((query() / key()).type(), Type::real);
  EXPECT_EQ(floor_div(query(), 2).type(), Type::integer);
  EXPECT_EQ((query() < 1.5).type(), Type::boolean);
  EXPECT_EQ(((query() < key()) + 1).type(), Type::integer);
  EXPECT_EQ(((query() < key()) * 0.5).type(), Type::real);
  EXPECT_EQ(where(query() < key(), 1, 0.5).type(), Type::real);
  EXPECT_EQ(exp(query()).type(), Type::real);
  EXPECT_EQ(floor(query()).type(), Type::integer);
  EXPECT_EQ(min(query(), 0.5).type(), Type::real);
  EXPECT_EQ(Expr(true).type(), Type::boolean);
  EXPECT_EQ(Expr(int64_t{3}).type(), Type::integer);
  EXPECT_EQ(Expr(2.0f).type(), Type::real);
}

TEST(Expr, BooleansUnderPlusAndTimesAreOrAndAnd) {
  const Expr a = query()<key(), b = query()> 3;
  EXPECT_TRUE(same(a + b, a | b));
  EXPECT_TRUE(same(a * b, a & b));
  EXPECT_TRUE(same(max(a, b), a | b));
  EXPECT_TRUE(same(min(a, b), a & b));
}

TEST(Expr, OperandsAreCastToOneType) {
  const Expr sum = query() + 0.5;
  EXPECT_EQ(sum.node().args[0].op(), Op::cast);
  EXPECT_EQ(sum.node().args[0].type(), Type::real);
  EXPECT_EQ(cast(query(), Type::boolean).op(), Op::ne);
  const Expr equal = (query() < 1) == (key() < 1);
  EXPECT_EQ(equal.node().args[0].type(), Type::integer);
}

TEST(Expr, Simplifies) {
  EXPECT_TRUE(same(dot() * 1.0, dot()));
  EXPECT_TRUE(same(1 * dot(), dot()));
  EXPECT_TRUE(same(dot() + 0, dot()));
  EXPECT_TRUE(same(dot() - 0.0, dot()));
  EXPECT_TRUE(same(dot() / 1, dot()));
  EXPECT_TRUE(same(-(-dot()), dot()));
  EXPECT_TRUE(same(~~(query() < key()), query() < key()));
  EXPECT_TRUE(same(where(true, dot(), 3.0), dot()));
  EXPECT_TRUE(same(where(false, dot(), 3.0), Expr(3.0)));
  EXPECT_TRUE(same((query() < key()) & true, query() < key()));
  EXPECT_TRUE(same((query() < key()) & false, Expr(false)));
  EXPECT_TRUE(same(true | (query() < key()), Expr(true)));
  EXPECT_TRUE(same(Expr(2) * 3 + 1, Expr(7)));
  EXPECT_TRUE(same(Expr(-7) % 4, Expr(1)));
  EXPECT_TRUE(same(floor_div(-7, 2), Expr(-4)));
  EXPECT_TRUE(same(Expr(7) / 2, Expr(3.5)));
  EXPECT_TRUE(same(query() * 0, Expr(0)));
  EXPECT_TRUE(same(pow(dot(), 2), dot() * dot()));
  EXPECT_TRUE(same(pow(dot(), 0), Expr(1.0)));
  EXPECT_TRUE(same(exp(0.0), Expr(1.0)));
}

TEST(Expr, KeepsWhatNanAndInfinityGive) {
  EXPECT_EQ((dot() * 0.0).op(), Op::mul);  // 0 * inf is NaN
  EXPECT_EQ((dot() - dot()).op(), Op::sub);
  EXPECT_EQ((dot() == dot()).op(), Op::eq);  // false of NaN
  EXPECT_EQ((~(dot() < 1.0)).op(), Op::logical_not);
  EXPECT_TRUE(std::isnan((Expr(0.0) / 0.0).node().number));
  EXPECT_TRUE((Expr(-1.0) / 0.0).is_constant(-std::numeric_limits<double>::infinity()));
}

TEST(Expr, FoldsOnlyWhatFitsIn32Bits) {
  EXPECT_EQ((Expr(2000000000) + 2000000000).op(), Op::add);
  EXPECT_EQ((Expr(100000) * 100000).op(), Op::mul);
}

TEST(Expr, RefusesIllTypedOperands) {
  const Expr mask = query() < key();
  EXPECT_EQ(message_of([&] { query() & mask; }), "[logical_and] expected bool arguments; found int and bool");
  EXPECT_EQ(message_of([&] { ~dot(); }), "[logical_not] expected a bool argument; found float");
  EXPECT_EQ(message_of([&] { where(dot(), 1, 2); }), "[where] expected a bool condition; found float");
  EXPECT_EQ(message_of([&] { mask - mask; }),
            "[sub] expected int or float arguments (cast the booleans); found bool and bool");
  EXPECT_EQ(message_of([&] { query() % 0; }), "[mod] expected an integer divisor other than 0; found 0");
  EXPECT_EQ(message_of([&] { floor_div(query(), 0); }),
            "[floor_div] expected an integer divisor other than 0; found 0");
  EXPECT_EQ(message_of([&] { pow(query(), -1); }),
            "[pow] expected an exponent of at least 0 for an integer base (cast the base to float); found -1");
  EXPECT_EQ(message_of([&] {
              capture("t", Type::real, {query(), dot()});
            }),
            "[capture] expected int indices of 't'; found float at index 1");
  EXPECT_EQ(message_of([&] { capture("", Type::real, {}); }), "[capture] expected a name; found ''");
  EXPECT_EQ(message_of([&] { make(Op::add, {query()}); }), "[add] expected 2 arguments; found 1");
  EXPECT_EQ(message_of([&] { Expr() + 1; }), "[Expr] expected an expression; found an empty one");
  EXPECT_EQ(message_of([&] { Expr(int64_t{5000000000}); }),
            "[constant] expected an integer that fits in 32 bits; found 5000000000.000000");
  EXPECT_EQ(message_of([&] { dot(4, 2); }), "[dot] expected an end after the first feature 4, or -1; found 2");
  EXPECT_EQ(message_of([&] { op_from_name("floordiv"); }),
            "[op_from_name] expected the name of an operator; found 'floordiv'; did you mean 'floor_div'?");
  EXPECT_EQ(message_of([&] { type_from_name("double"); }),
            "[type_from_name] expected 'bool', 'int' or 'float'; found 'double'");
}

TEST(Expr, NamesRoundTrip) {
  for (int op = 0; op <= static_cast<int>(Op::cast); ++op) {
    EXPECT_EQ(op_from_name(name_of(static_cast<Op>(op))), static_cast<Op>(op));
  }
}

TEST(Expr, Prints) {
  const Expr slopes = capture("slopes", Type::real, {head()});
  EXPECT_EQ(to_string(scale() * dot() - slopes * cast(query() - key(), Type::real)),
            "scale * dot() - slopes[h] * float(i - j)");
  EXPECT_EQ(to_string((query() >= key()) & (query() - key() < 4)), "(i >= j) & (i - j < 4)");
  EXPECT_EQ(to_string(query() - (key() - 1)), "i - (j - 1)");
  EXPECT_EQ(to_string(floor_div(query(), 3) % 2 == key()), "i // 3 % 2 == j");
  EXPECT_EQ(to_string(~(query() < key()) | (key() == 0)), "~(i < j) | (j == 0)");
  EXPECT_EQ(to_string(-(dot() + 1)), "-(dot() + 1.0)");
  EXPECT_EQ(to_string(pow(dot("x", 2), 3)), "dot(\"x\", head=2) ** 3.0");
  EXPECT_EQ(to_string(pow(-2.0, dot(0, 8))), "(-2.0) ** dot(0, 8)");
  EXPECT_EQ(to_string(where(row() < column(), queries(), keys())), "where(row < column, M, N)");
  EXPECT_EQ(to_string(min(capture("c", Type::integer, {}), heads())), "min(c, H)");
  EXPECT_EQ(to_string(Expr()), "default");
}

TEST(Expr, PrintsSharedPartsOnce) {
  Expr value = dot();
  for (int i = 0; i < 64; ++i) value = value * value + 0.5;  // a tree of 2^64 nodes
  const std::string text = to_string(value);
  EXPECT_LT(text.size(), 10000u);
  EXPECT_NE(text.find("t1 = dot() * dot() + 0.5\n"), std::string::npos) << text;
}

TEST(Expr, FlattenSharesEqualNodes) {
  const Expr a = (query() - key()) * 2, b = (query() - key()) * 2 + (query() - key());
  const Graph graph = flatten({a, Expr(), b, a});
  EXPECT_EQ(graph.entries.size(), 6u);  // i, j, i - j, 2, the product, the sum
  EXPECT_EQ(graph.roots[1], -1);
  EXPECT_EQ(graph.roots[0], graph.roots[3]);
  for (size_t i = 0; i < graph.entries.size(); ++i) {
    for (const int arg : graph.entries[i].args) EXPECT_LT(arg, static_cast<int>(i));
  }
}

TEST(Expr, SameComparesStructure) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    const Expr a = RandomExpr(seed).real(4), b = RandomExpr(seed).real(4), c = RandomExpr(seed + 1000).real(4);
    EXPECT_TRUE(same(a, b));
    EXPECT_EQ(same(a, c), to_string(a) == to_string(c)) << to_string(a) << "\n" << to_string(c);
  }
  EXPECT_FALSE(same(Expr(1), Expr(1.0)));
  EXPECT_FALSE(same(Expr(0.0), Expr(-0.0)));
  EXPECT_FALSE(same(dot("a"), dot("b")));
}

TEST(Expr, Dependence) {
  const Dependence none = dependence(heads() + 1);
  EXPECT_FALSE(none.batch || none.head || none.query || none.key || none.dot);
  const Dependence some = dependence(capture("t", Type::real, {head(), row()}));
  EXPECT_TRUE(some.head && some.query && !some.key && !some.batch && !some.dot);
  const Dependence all = dependence(scale() * dot());
  EXPECT_TRUE(all.batch && all.head && all.query && all.key && all.dot);
}

TEST(Expr, SubstituteReplacesOnceAndSimplifies) {
  const Expr replaced = substitute(query() - key() * query(), {{query(), key()}, {key(), Expr(1)}});
  EXPECT_EQ(to_string(replaced), "j - j");
  EXPECT_EQ(to_string(substitute(dot() * cast(query(), Type::real), {{query(), Expr(1)}})), "dot()");
  const Expr inside = substitute(capture("t", Type::real, {query()}), {{query(), row() * 2}});
  EXPECT_EQ(to_string(inside), "t[row * 2]");
  EXPECT_EQ(message_of([] {
              substitute(query(), {{query(), Expr(1.0)}});
            }),
            "[substitute] expected a replacement of type int; found float");
}

TEST(Expr, DeepChainsNeedNoStack) {
  Expr value = dot();
  for (int i = 0; i < 200000; ++i) value = value + dot();
  EXPECT_EQ(flatten({value}).entries.size(), 200001u);
  value = Expr();
}

}  // namespace
}  // namespace regard
