#include "regard/algebra/derivative.h"

#include <cmath>
#include <map>

#include "message.h"
#include "random_expr.h"
#include "regard/algebra/evaluate.h"

namespace regard {
namespace {

/// Values of dots and captures, each real leaf adjustable by its printed form.
class Values {
 public:
  explicit Values(unsigned seed) : seed_(seed) {}

  std::map<std::string, double> shift;

  LeafValues leaves() {
    return {[this](const Node& dot, const Pair&) {
              return noise(dot.name + ":" + std::to_string(dot.end)) + shift[dot.name + ":" + std::to_string(dot.end)];
            },
            [this](const std::string& name, const std::vector<int64_t>& indices) {
              if (name == "flag") return static_cast<double>(indices[0] % 2);
              if (name == "map" || name == "ids") return static_cast<double>(indices[0] % 5 - 1);
              return noise(name) + shift[name];
            }};
  }

  static std::string key_of(const Expr& leaf) {
    const Node& node = leaf.node();
    return node.op == Op::dot ? node.name + ":" + std::to_string(node.end) : node.name;
  }

 private:
  double noise(const std::string& key) const {
    uint64_t value = 1469598103934665603ull + seed_ * 7919ull;
    for (const char c : key) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    return static_cast<double>((value >> 20) % 10007) / 10007.0 * 3 - 1.5;
  }

  unsigned seed_;
};

double shifted(const Expr& f, const Pair& pair, Values& values, const std::string& key, double step) {
  values.shift[key] = step;
  const double result = evaluate(f, pair, values.leaves());
  values.shift[key] = 0;
  return result;
}

/// Counts the leaves whose derivative could be compared; expects agreement.
void compare_with_differences(const Expr& f, unsigned seed, int& compared, int& skipped) {
  std::vector<Expr> leaves = dots_of({f});
  const auto captures = real_captures_of({f});
  leaves.insert(leaves.end(), captures.begin(), captures.end());
  const auto gradients = gradient(f, leaves);
  ASSERT_EQ(gradients.size(), leaves.size());
  const Pair pair{0, 1, static_cast<int64_t>(seed % 5), static_cast<int64_t>(seed % 7), 2, 3, 8, 9, 0, 0.7};
  Values values(seed);
  for (size_t l = 0; l < leaves.size(); ++l) {
    const std::string key = Values::key_of(leaves[l]);
    const double h = 1e-5;
    const double plus = shifted(f, pair, values, key, h), minus = shifted(f, pair, values, key, -h);
    const double wide = (shifted(f, pair, values, key, 2 * h) - shifted(f, pair, values, key, -2 * h)) / (4 * h);
    const double middle = evaluate(f, pair, values.leaves());
    const double numeric = (plus - minus) / (2 * h);
    const double size = std::max({1.0, std::abs(numeric), std::abs(middle)});
    // A kink, a pole or a steep place near by: the two step sizes or the two sides disagree.
    const bool clear = std::isfinite(numeric) && std::isfinite(wide) && std::abs(numeric - wide) < 1e-6 * size &&
                       std::abs((plus - middle) - (middle - minus)) < 1e-7 * size && size < 1e4;
    if (!clear) {
      ++skipped;
      continue;
    }
    ++compared;
    const double symbolic = evaluate(gradients[l], pair, values.leaves());
    EXPECT_NEAR(symbolic, numeric, 3e-6 * size)
        << to_string(f) << "\nby " << to_string(leaves[l]) << "\n= " << to_string(gradients[l]);
  }
}

TEST(Derivative, AgreesWithFiniteDifferences) {
  int compared = 0, skipped = 0;
  for (unsigned seed = 0; seed < 600; ++seed) {
    RandomExpr random(seed);
    random.smooth = seed % 2 == 0;
    compare_with_differences(random.real(4), seed, compared, skipped);
  }
  EXPECT_GT(compared, 800);
  EXPECT_LT(skipped, compared / 3);
}

TEST(Derivative, OfADerivative) {
  int compared = 0, skipped = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    RandomExpr random(seed);
    random.smooth = true;
    const Expr f = random.real(3);
    for (const auto& first : gradient(f, dots_of({f}))) {
      if (first.defined()) compare_with_differences(first, seed, compared, skipped);
    }
  }
  EXPECT_GT(compared, 60);
}

double at(const Expr& f, double x) {
  return evaluate(gradient(f, {dot()})[0], {}, {[x](const Node&, const Pair&) { return x; }, {}});
}

TEST(Derivative, ConventionsAtSpecialPoints) {
  const Expr x = dot();
  EXPECT_EQ(at(max(x, 0.0), 0), 0.5);
  EXPECT_EQ(at(min(x, 0.0), 0), 0.5);
  EXPECT_EQ(at(max(x, 0.0), 1), 1);
  EXPECT_EQ(at(max(x, 0.0), -1), 0);
  EXPECT_EQ(at(max(x, x), 2), 1);
  EXPECT_EQ(at(abs(x), 0), 0);
  EXPECT_EQ(at(abs(x), -2), -1);
  EXPECT_EQ(at(floor(x), 0.5), 0);
  EXPECT_EQ(at(x % 3.0, 4), 1);
  EXPECT_EQ(at(cast(x < 1.0, Type::real) * 2.0, 0), 0);
  EXPECT_EQ(at(cast(cast(x, Type::integer), Type::real), 1.5), 0);
  EXPECT_EQ(at(pow(x, 3), 0), 0);
  EXPECT_EQ(at(pow(x, 0.0), 0), 0);
  EXPECT_EQ(at(pow(0.0, x), 0), 0);  // as torch: no NaN from log(0)
  EXPECT_EQ(at(pow(0.0, x), 2), 0);
  EXPECT_EQ(at(pow(x, 1.5), 0), 0);
  EXPECT_EQ(at(sqrt(x), 0), INFINITY);  // as torch
  EXPECT_EQ(at(log(x), 0), INFINITY);
}

TEST(Derivative, WherePassesNothingToTheBranchNotChosen) {
  const Expr x = dot();
  for (const double value : {0.0, -1.0}) {
    EXPECT_EQ(at(where(x > 0.0, log(x), 0.0), value), 0);
    EXPECT_EQ(at(where(x > 0.0, 2.0 * sqrt(x) * x, 3.0 * x), value), 3);
    EXPECT_EQ(at(where(x > 0.0, where(x > 1.0, 1.0 / x, pow(x, 0.5)), x), value), 1);
    EXPECT_EQ(at(exp(where(x > 0.0, log(x), 0.0)) + 0.5 * x, value), 0.5);
  }
  EXPECT_EQ(at(where(x > 0.0, log(x), 0.0), 2), 0.5);
  // A value used inside and outside of a branch.
  const Expr root = sqrt(x + 1.0);
  EXPECT_EQ(at(where(x > 0.0, 1.0 / x, 0.0) + root, 0), 0.5);
}

TEST(Derivative, SizeStaysLinear) {
  Expr value = dot();
  for (int i = 0; i < 200; ++i) value = tanh(value * value + value);
  EXPECT_LT(flatten(gradient(value, {dot()})).entries.size(), 4000u);
}

TEST(Derivative, LeavesAreTheDistinctReads) {
  const Expr a = capture("t", Type::real, {query() - key()}), b = capture("t", Type::real, {head()});
  const Expr f = dot() * a + b * a + dot("x") + dot() * cast(capture("n", Type::integer, {key()}), Type::real);
  const auto dots = dots_of({f});
  ASSERT_EQ(dots.size(), 2u);
  EXPECT_TRUE(same(dots[0], dot()));
  EXPECT_TRUE(same(dots[1], dot("x")));
  const auto captures = real_captures_of({f});
  ASSERT_EQ(captures.size(), 2u);
  EXPECT_TRUE(same(captures[0], a));
  const auto gradients = gradient(f, {a, b, dot("y"), dot("x")});
  EXPECT_EQ(to_string(gradients[0]), "t[h] + dot()");
  EXPECT_EQ(to_string(gradients[1]), "t[i - j]");
  EXPECT_TRUE(gradients[2].is_constant(0));
  EXPECT_TRUE(gradients[3].is_constant(1));
}

TEST(Derivative, OfTheDefaultScoreIsTheScale) { EXPECT_EQ(to_string(gradient(scale() * dot(), {dot()})[0]), "scale"); }

TEST(Derivative, RefusesWhatHasNone) {
  EXPECT_EQ(message_of([] { gradient(query(), {dot()}); }),
            "[gradient] expected an expression of type float; found int");
  EXPECT_EQ(message_of([] { gradient(dot(), {query()}); }),
            "[gradient] expected leaves that are dots or float captures; found i");
}

}  // namespace
}  // namespace regard
