#include "regard/algebra/evaluate.h"

#include <cmath>

#include "message.h"

namespace regard {
namespace {

double value(const Expr& expr) { return evaluate(expr, {1, 2, 3, 4, 5, 6, 7, 8, 10, 0.5}); }

TEST(Evaluate, Leaves) {
  EXPECT_EQ(value(batch() + heads() * 100), 601);
  EXPECT_EQ(value(head() + batches() * 100), 502);
  EXPECT_EQ(value(query() * 100 + row()), 1303);
  EXPECT_EQ(value(key() - column()), 0);
  EXPECT_EQ(value(queries() * 10 + keys()), 78);
  EXPECT_EQ(value(scale()), 0.5);
}

TEST(Evaluate, DivisionRoundsTowardMinusInfinity) {
  const Expr three = row();  // not folded
  EXPECT_EQ(value(floor_div(-three * 3, 4)), -3);
  EXPECT_EQ(value((-three * 3) % 4), 3);
  EXPECT_EQ(value((three * 3) % -4), -3);
  EXPECT_EQ(value(three % (three - 3)), 0);
  EXPECT_EQ(value(floor_div(three, three - 3)), 0);
  EXPECT_EQ(value(floor_div(cast(three, Type::real), -2.0)), -2);
  EXPECT_EQ(value(cast(three, Type::real) % -2.0), -1);
  EXPECT_EQ(value(three / 2), 1.5);
  EXPECT_EQ(value(cast(cast(-three, Type::real) / 2.0, Type::integer)), -1);
  EXPECT_EQ(value(pow(three, 3)), 27);
}

TEST(Evaluate, NanPassesThroughMinAndMax) {
  const double nan = std::nan("");
  const LeafValues leaves{[nan](const Node&, const Pair&) { return nan; }, {}};
  for (const Expr& expr : {min(dot(), 1.0), min(1.0, dot()), max(dot(), 1.0), max(1.0, dot())}) {
    EXPECT_TRUE(std::isnan(evaluate(expr, {}, leaves))) << to_string(expr);
  }
  EXPECT_EQ(evaluate(dot() == dot(), {}, leaves), 0);
  EXPECT_EQ(evaluate(~(dot() < 1.0), {}, leaves), 1);
}

TEST(Evaluate, ReadsOnlyWhatItNeeds) {
  int reads = 0;
  const LeafValues leaves{{}, [&reads](const std::string&, const std::vector<int64_t>& index) {
                            ++reads;
                            return static_cast<double>(index[0]);
                          }};
  const Expr read = capture("t", Type::integer, {query()});
  EXPECT_EQ(evaluate(where(query() > 5, read, 7), {}, leaves), 7);
  EXPECT_EQ(evaluate((query() > 5) & (read == 0), {}, leaves), 0);
  EXPECT_EQ(evaluate((query() < 5) | (read == 0), {}, leaves), 1);
  EXPECT_EQ(reads, 0);
  EXPECT_EQ(evaluate(read + read, {}, leaves), 0);
  EXPECT_EQ(reads, 1);
}

TEST(Evaluate, RefusesMissingValues) {
  EXPECT_EQ(message_of([] { evaluate(dot(), {}); }), "[evaluate] expected values for dots; found dot()");
  EXPECT_EQ(message_of([] { evaluate(capture("t", Type::real, {}), {}); }),
            "[evaluate] expected values for captures; found 't'");
}

}  // namespace
}  // namespace regard
