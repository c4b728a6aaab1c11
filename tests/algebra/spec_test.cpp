#include "regard/algebra/spec.h"

#include <cmath>
#include <limits>
#include <thread>

#include "message.h"
#include "random_expr.h"

namespace regard {
namespace {

AttentionSpec alibi() {
  AttentionSpec spec;
  spec.score = scale() * dot() - capture("slopes", Type::real, {head()}) * cast(query() - key(), Type::real);
  spec.keep = masks::causal() & masks::lengths("lengths");
  return spec;
}

/// A spec whose every field may be set.
AttentionSpec random_spec(unsigned seed) {
  RandomExpr random(seed);
  AttentionSpec spec;
  if (random.below(4)) spec.score = random.real(4);
  const auto mask = [&random] {
    random.with_leaves = false;
    Expr expr = random.boolean(3) & (capture("ids", Type::integer, {key()}) < 3);
    random.with_leaves = true;
    return expr;
  };
  if (random.below(2)) spec.keep = mask();
  if (random.below(3) == 0) spec.counted = mask();
  if (random.below(2)) spec.weight = random.real(3);
  spec.normalizer.kind = static_cast<Normalizer::Kind>(random.below(7));
  using Kind = Normalizer::Kind;
  const Kind kind = spec.normalizer.kind;
  if (kind == Kind::softmax) spec.normalizer.sinks = random.below(2);
  if (kind == Kind::relu || kind == Kind::identity) {
    spec.normalizer.divisor = static_cast<Normalizer::Divisor>(random.below(3));
  } else if (kind != Kind::sigmoid) {
    spec.normalizer.detach = random.below(2);
  }
  if (kind == Kind::sum) spec.normalizer.floor = random.below(3) * 0.1;
  if (kind == Kind::z_score || kind == Kind::signed_softmax) spec.normalizer.epsilon = 1e-5 * random.below(2);
  if (kind == Kind::z_score) spec.normalizer.epsilon_place = static_cast<Normalizer::EpsilonPlace>(random.below(3));
  for (int i = random.below(3); i > 0; --i) {
    PairOutput output{random.real(3), {}, 1};
    if (random.below(2)) {
      output.bucket = random.integer(2);
      output.buckets = 2 + random.below(5);
    }
    spec.pair_outputs.push_back(output);
  }
  if (random.below(2)) spec.scale = random.below(100) / 7.0;
  if (random.below(3) == 0) spec.dropout = 0.1;
  if (random.below(3) == 0) spec.positions.query = {random.below(9) - 4, 1 + random.below(3), "", true};
  if (random.below(3) == 0) spec.positions.key = {0, 1, "positions", random.below(2) == 0};
  return spec;
}

TEST(Spec, TheDefaultPrintsAsNothing) {
  EXPECT_EQ(to_json({}), "{}");
  EXPECT_EQ(to_json(spec_from_json("{}")), "{}");
  EXPECT_EQ(to_string(AttentionSpec()), "score: scale * dot()\nnormalizer: softmax\nscale: 1 / sqrt(Dh)");
}

TEST(Spec, PrintsCanonicalJson) {
  EXPECT_EQ(to_json(alibi()),
            R"({"keep":16,"nodes":[["scale"],["dot"],["mul",0,1],["head"],["capture","slopes","float",3],["query"],)"
            R"(["key"],["sub",5,6],["cast",7,"float"],["mul",4,8],["sub",2,9],["ge",5,6],["column"],["batch"],)"
            R"(["capture","lengths","int",13],["lt",12,14],["logical_and",11,15]],"score":10})");
}

TEST(Spec, HashIsTheSameOnEveryMachine) {
  EXPECT_EQ(hash({}), 0x8f44b07b5901a25ull);
  EXPECT_EQ(hash(alibi()), 0x30977ed9be3e62bbull);
  EXPECT_EQ(hash(alibi()), hash(spec_from_json(to_json(alibi()))));
  AttentionSpec other = alibi();
  other.dropout = 0.5;
  EXPECT_NE(hash(other), hash(alibi()));
}

TEST(Spec, JsonRoundTrips) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    const AttentionSpec spec = random_spec(seed);
    const std::string text = to_json(spec);
    const AttentionSpec read = spec_from_json(text);
    ASSERT_EQ(to_json(read), text) << "seed " << seed;
    EXPECT_EQ(to_string(read), to_string(spec));
    if (spec.score.defined()) {
      EXPECT_TRUE(same(read.score, spec.score));
    }
    const AttentionSpec resolved = spec.resolved();
    EXPECT_EQ(to_json(spec_from_json(to_json(resolved))), to_json(resolved));
    EXPECT_EQ(to_json(resolved.resolved()), to_json(resolved));
    EXPECT_EQ(resolved.captures(), spec.captures());
    EXPECT_EQ(resolved.operands(), spec.operands());
  }
}

TEST(Spec, InfinitiesAndNanHaveNames) {
  AttentionSpec spec;
  const double infinity = std::numeric_limits<double>::infinity();
  spec.score = where(query() < key(), -infinity, where(query() == key(), infinity, std::nan("")));
  const std::string text = to_json(spec);
  EXPECT_NE(text.find(R"(["constant","-inf","float"])"), std::string::npos) << text;
  EXPECT_NE(text.find(R"(["constant","nan","float"])"), std::string::npos) << text;
  EXPECT_EQ(to_json(spec_from_json(text)), text);
}

TEST(Spec, ReadsAnyTable) {
  // Unused and repeated nodes, mixed types, a normalizer by its name.
  const AttentionSpec spec = spec_from_json(
      R"({"nodes": [["key"], ["query"], ["query"], ["sub", 1, 0], ["dot", "", 0, 4], ["add", 4, 3], ["ge", 2, 0],
                    ["constant", 3, "int"], ["constant", true, "bool"], ["dot", "rope", 0, -1, 2]],
          "score": 5, "keep": 6, "normalizer": "sigmoid"})");
  EXPECT_EQ(to_string(spec.score), "dot(0, 4) + float(i - j)");
  EXPECT_EQ(spec.normalizer.kind, Normalizer::Kind::sigmoid);
  EXPECT_EQ(to_json(spec),
            R"({"keep":6,"nodes":[["dot","",0,4],["query"],["key"],["sub",1,2],["cast",3,"float"],["add",0,4],)"
            R"(["ge",1,2]],"normalizer":{"kind":"sigmoid"},"score":5})");
}

TEST(Spec, ResolvedFillsDefaults) {
  const AttentionSpec spec = AttentionSpec().resolved();
  EXPECT_TRUE(same(spec.score, scale() * dot()));
  EXPECT_TRUE(spec.keep.is_constant(1) && spec.keep.type() == Type::boolean);
  EXPECT_TRUE(spec.weight.is_constant(1) && spec.weight.type() == Type::real);
  EXPECT_TRUE(same(spec.counted, spec.keep));
  AttentionSpec causal;
  causal.keep = masks::causal();
  EXPECT_TRUE(same(causal.resolved().counted, masks::causal()));
}

TEST(Spec, ResolvedReplacesPositions) {
  AttentionSpec spec = alibi();
  spec.pair_outputs.push_back({cast(key(), Type::real), query() % 2, 2});
  spec.positions.key = {4, 2, "", true};
  AttentionSpec resolved = spec.resolved();
  EXPECT_EQ(to_string(resolved.keep), "(i >= 4 + 2 * column) & (column < lengths[b])");
  EXPECT_EQ(to_string(resolved.pair_outputs[0].value), "float(4 + 2 * column)");
  spec.positions.query = {0, 1, "at", true};
  resolved = spec.resolved();
  EXPECT_EQ(to_string(resolved.keep), "(at[b, row] >= 4 + 2 * column) & (column < lengths[b])");
  EXPECT_EQ(to_string(resolved.pair_outputs[0].bucket), "at[b, row] % 2");
  spec.positions.query.per_batch = false;
  EXPECT_EQ(to_string(spec.resolved().keep), "(at[row] >= 4 + 2 * column) & (column < lengths[b])");
  EXPECT_EQ(spec.captures(), (std::vector<std::string>{"at", "lengths", "slopes"}));
}

TEST(Spec, ListsWhatACallBrings) {
  AttentionSpec spec = alibi();
  spec.score = spec.score + dot("z") + dot("a", 1);
  spec.pair_outputs = {{dot("m"), {}, 1}, {1.0, query(), 5}};
  spec.positions.key.tensor = "key_positions";  // brought even where no expression reads it
  EXPECT_EQ(spec.captures(), (std::vector<std::string>{"key_positions", "lengths", "slopes"}));
  EXPECT_EQ(spec.operands(), (std::vector<std::string>{"a", "m", "z"}));
  EXPECT_EQ(spec.pair_channels(), 6);
}

template <class Change>
std::string refusal(Change change) {
  AttentionSpec spec;
  change(spec);
  return message_of([&] { spec.validate(); });
}

TEST(Spec, ValidatesTypes) {
  EXPECT_EQ(refusal([](auto& s) { s.score = query(); }),
            "[AttentionSpec] expected a score of type float; found int: i");
  EXPECT_EQ(refusal([](auto& s) { s.keep = dot(); }),
            "[AttentionSpec] expected a keep of type bool; found float: dot()");
  EXPECT_EQ(refusal([](auto& s) { s.weight = query() < 3; }),
            "[AttentionSpec] expected a weight of type float; found bool: i < 3");
  EXPECT_EQ(refusal([](auto& s) { s.keep = dot() > 0.0; }),
            "[AttentionSpec] expected a keep that reads no dot product; found dot() > 0.0");
  EXPECT_EQ(refusal([](auto& s) { s.counted = dot() > 0.0; }),
            "[AttentionSpec] expected a counted that reads no dot product; found dot() > 0.0");
  EXPECT_EQ(refusal([](auto& s) { s.pair_outputs = {{}}; }),
            "[AttentionSpec] expected a value of pair_outputs[0]; found none");
  EXPECT_EQ(refusal([](auto& s) {
              s.pair_outputs = {{1.0, {}, 3}};
            }),
            "[AttentionSpec] expected a bucket of pair_outputs[0] with its 3 buckets; found none");
  EXPECT_EQ(refusal([](auto& s) {
              s.pair_outputs = {{1.0, query(), 1}};
            }),
            "[AttentionSpec] expected more than 1 bucket of pair_outputs[0] with its bucket; found 1");
  EXPECT_EQ(
      refusal([](auto& s) {
        s.score = capture("t", Type::real, {query()}) + capture("t", Type::real, {query(), key()});
      }),
      "[AttentionSpec] expected every read of capture 't' with 1 indices of type float; found 2 indices of type float");
}

TEST(Spec, ValidatesNormalizerAndNumbers) {
  using Kind = Normalizer::Kind;
  EXPECT_EQ(refusal([](auto& s) { s.normalizer.kind = Kind::relu, s.normalizer.sinks = true; }),
            "[AttentionSpec] expected normalizer 'softmax' with sinks; found normalizer 'relu'");
  EXPECT_EQ(refusal([](auto& s) { s.normalizer.divisor = Normalizer::Divisor::keys; }),
            "[AttentionSpec] expected normalizer 'relu' or 'identity' with a divisor; found normalizer 'softmax'");
  EXPECT_EQ(refusal([](auto& s) { s.normalizer.floor = 1; }),
            "[AttentionSpec] expected normalizer 'sum' with a floor; found normalizer 'softmax'");
  EXPECT_EQ(refusal([](auto& s) { s.normalizer.epsilon = -1; }),
            "[AttentionSpec] expected a finite epsilon of at least 0; found -1.0");
  EXPECT_EQ(refusal([](auto& s) { s.normalizer.kind = Kind::sigmoid, s.normalizer.detach = true; }),
            "[AttentionSpec] expected a normalizer with a denominator to detach; found normalizer 'sigmoid'");
  EXPECT_EQ(refusal([](auto& s) { s.dropout = 1; }), "[AttentionSpec] expected a dropout in [0, 1); found 1.0");
  EXPECT_EQ(refusal([](auto& s) { s.scale = std::nan(""); }), "[AttentionSpec] expected a finite scale; found nan");
  EXPECT_EQ(refusal([](auto& s) {
              s.positions.key = {1, 1, "p", true};
            }),
            "[AttentionSpec] expected key positions by a tensor or by an offset and a stride; "
            "found tensor 'p', offset 1, stride 1");
  EXPECT_EQ(refusal([](auto& s) { s.positions.query.stride = 0; }),
            "[AttentionSpec] expected a stride of query positions other than 0; found 0");
}

std::string unreadable(const std::string& text) {
  return message_of([&] { spec_from_json(text); });
}

TEST(Spec, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(
      unreadable(R"({"skore": 1})"),
      "[spec_from_json] expected a spec with the keys 'nodes', 'score', 'keep', 'weight', 'counted', 'normalizer', "
      "'pair_outputs', 'scale', 'dropout', 'positions'; found 'skore'; did you mean 'score'?");
  EXPECT_EQ(unreadable(R"({"nodes": [["floordiv", 0, 0]]})"),
            "[spec_from_json] node 0 [\"floordiv\",0,0]: [op_from_name] expected the name of an operator; "
            "found 'floordiv'; did you mean 'floor_div'?");
  EXPECT_EQ(unreadable(R"({"nodes": [["query"], ["logical_and", 0, 0]]})"),
            "[spec_from_json] node 1 [\"logical_and\",0,0]: [logical_and] expected bool arguments; found int and int");
  EXPECT_EQ(unreadable(R"({"nodes": [["neg", 0]]})"),
            "[spec_from_json] expected a node before it, in [0, 0), as argument 1 of node 0; found 0");
  EXPECT_EQ(unreadable(R"({"nodes": [["query"]], "score": 0.5})"),
            "[spec_from_json] expected an integer as score; found 0.5");
  EXPECT_EQ(unreadable(R"({"nodes": [["query"]], "score": 3})"),
            "[spec_from_json] expected a node before it, in [0, 1), as score; found 3");
  EXPECT_EQ(
      unreadable(R"({"normalizer": {"kind": "soft_max"}})"),
      "[normalizer] expected one of 'softmax', 'signed_softmax', 'sum', 'sigmoid', 'relu', 'identity', 'z_score'; "
      "found 'soft_max'; did you mean 'softmax'?");
  EXPECT_EQ(unreadable(R"({"normalizer": {"sink": true}})"),
            "[spec_from_json] expected 'normalizer' with the keys 'kind', 'sinks', 'divisor', 'floor', 'epsilon', "
            "'epsilon_place', 'detach'; "
            "found 'sink'; did you mean 'sinks'?");
  EXPECT_EQ(unreadable(R"({"nodes": [["constant", 0.5, "int"]]})"),
            "[spec_from_json] expected an integer as the value of node 0; found 0.5");
  EXPECT_EQ(unreadable(R"({"nodes": [["constant", 1]]})"),
            "[spec_from_json] expected node 0 with 3 entries; found [\"constant\",1]");
  EXPECT_EQ(unreadable(R"({"scale": "big"})"), "[spec_from_json] expected a number as scale; found \"big\"");
  EXPECT_EQ(unreadable("[1]"), "[spec_from_json] expected a spec as an object; found [1]");
  EXPECT_EQ(unreadable(R"({"nodes": 5})"), "[spec_from_json] expected 'nodes' as a list; found 5");
  EXPECT_EQ(unreadable(R"({"pair_outputs": [{"bukket": 1}]})"),
            "[spec_from_json] expected 'pair_outputs[0]' with the keys 'value', 'bucket', 'buckets'; found 'bukket'; "
            "did you mean 'bucket'?");
  EXPECT_NE(unreadable("{").find("[spec_from_json] expected a spec in JSON; found "), std::string::npos);
  EXPECT_EQ(unreadable(R"({"dropout": 2})"), "[AttentionSpec] expected a dropout in [0, 1); found 2.0");
}

TEST(Spec, SurvivesAnyDamage) {
  // Every text either reads or is refused by regard::Error.
  std::mt19937 engine(3);
  const std::string letters = "{}[]\",:0159.-eadnulrt\xff ";
  for (unsigned seed = 0; seed < 2000; ++seed) {
    std::string text = to_json(random_spec(seed % 50));
    for (int edits = 1 + static_cast<int>(engine() % 3); edits > 0 && !text.empty(); --edits) {
      const size_t at = engine() % text.size();
      const char letter = letters[engine() % letters.size()];
      if (engine() % 3 == 0)
        text.erase(at, 1 + engine() % 4);
      else if (engine() % 2)
        text[at] = letter;
      else
        text.insert(at, 1, letter);
    }
    try {
      spec_from_json(text);
    } catch (const Error&) {
    }
  }
}

TEST(Spec, InternKeepsOneAcrossThreads) {
  const std::string text = to_json(alibi());
  std::vector<std::shared_ptr<const AttentionSpec>> found(8);
  std::vector<std::thread> threads;
  for (auto& spec : found) threads.emplace_back([&spec, &text] { spec = intern(text); });
  for (auto& thread : threads) thread.join();
  for (const auto& spec : found) EXPECT_EQ(spec, found[0]);
  EXPECT_TRUE(found[0]->weight.is_constant(1));  // resolved
  EXPECT_EQ(message_of([] { intern(R"({"dropout": 2})"); }), "[AttentionSpec] expected a dropout in [0, 1); found 2.0");
}

TEST(Masks, Print) {
  EXPECT_EQ(to_string(masks::causal()), "i >= j");
  EXPECT_EQ(to_string(masks::window(4, 2)), "(i - j <= 4) & (j - i <= 2)");
  EXPECT_EQ(to_string(masks::window(4, -1)), "i - j <= 4");
  EXPECT_EQ(to_string(masks::window(-1, -1)), "True");
  EXPECT_EQ(to_string(masks::lengths("n")), "column < n[b]");
  EXPECT_EQ(to_string(masks::documents("q", "k")), "q[b, row] == k[b, column]");
  EXPECT_EQ(message_of([] { masks::window(-2, 0); }),
            "[masks::window] expected a width of at least 0, or -1 for unbounded; found -2");
}

}  // namespace
}  // namespace regard
