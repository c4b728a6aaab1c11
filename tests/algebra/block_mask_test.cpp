#include "regard/algebra/block_mask.h"

#include <algorithm>
#include <cmath>

#include "message.h"
#include "random_expr.h"
#include "regard/algebra/evaluate.h"
#include "regard/algebra/spec.h"

namespace regard {
namespace {

constexpr int64_t kQueries = 53, kKeys = 61;

double captured(const std::string& name, const std::vector<int64_t>& index) {
  const auto at = static_cast<double>(index.back());
  if (name == "lengths") return 37;
  if (name == "global") return index[0] % 23 == 4;
  if (name == "flag") return index[0] % 3 == 0;
  if (name == "map") return static_cast<double>(index[0] % 5);
  if (name == "start") return std::floor(at / 17) * 17;
  return std::floor(at / 17);  // documents of 17 tokens
}

/// What a kernel knows: the exact range over the box of indices.
Interval captured_range(const std::string& name, const std::vector<Interval>& indices) {
  if (!(indices.back().high - indices.back().low < 200)) return Interval::everything();
  Interval found{1e300, -1e300};
  for (double index = indices.back().low; index <= indices.back().high; ++index) {
    const double value = captured(name, {static_cast<int64_t>(index)});
    found = {std::min(found.low, value), std::max(found.high, value)};
  }
  return found;
}

struct Counts {
  int64_t wrong = 0, loose = 0, decided = 0;
};

/// Holds the block mask against every pair.
Counts count(const Expr& keep, int64_t query_block, int64_t key_block, int64_t offset = 0) {
  Tile whole;
  whole.queries = kQueries, whole.keys = kKeys, whole.query_offset = offset;
  const BlockMask mask = block_mask(keep, whole, query_block, key_block, captured_range);
  EXPECT_EQ(mask.rows, (kQueries + query_block - 1) / query_block);
  EXPECT_EQ(mask.columns, (kKeys + key_block - 1) / key_block);
  Evaluator evaluator({keep});
  Counts counts;
  for (int64_t r = 0; r < mask.rows; ++r) {
    for (int64_t c = 0; c < mask.columns; ++c) {
      bool some = false, all = true;
      for (int64_t i = r * query_block; i < std::min((r + 1) * query_block, kQueries); ++i) {
        for (int64_t j = c * key_block; j < std::min((c + 1) * key_block, kKeys); ++j) {
          const bool kept = evaluator({0, 0, i, j, 1, 1, kQueries, kKeys, offset, 1}, {{}, captured}) != 0;
          some = some || kept;
          all = all && kept;
        }
      }
      const Truth counted = all ? Truth::always : some ? Truth::sometimes : Truth::never;
      counts.wrong += mask.at(r, c) != Truth::sometimes && mask.at(r, c) != counted;
      counts.loose += mask.at(r, c) != counted;
      counts.decided += counted != Truth::sometimes;
    }
  }
  return counts;
}

Expr clamp(Expr x, Expr low, Expr high) { return min(max(x, low), high); }

struct Named {
  const char* name;
  Expr keep;
};

std::vector<Named> named_masks() {
  const Expr i = query(), j = key();
  const auto global = [](const Expr& index) { return capture("global", Type::boolean, {index}); };
  const auto start = [](const Expr& index) { return capture("start", Type::integer, {index}); };
  const Expr documents = masks::documents("query_ids", "key_ids");
  // Neighborhoods of 5 x 3 on a canvas of 8 x 8.
  const Expr natten =
      (abs(clamp(floor_div(i, 8), 2, 5) - floor_div(j, 8)) <= 2) & (abs(clamp(i % 8, 1, 6) - j % 8) <= 1);
  // Block diffusion over 2 x 24 positions in blocks of 6.
  const Expr ni = i < 24, nj = j < 24, ci = floor_div(i % 24, 6), cj = floor_div(j % 24, 6);
  const Expr diffusion = ((ci == cj) & (ni == nj)) | ((ci > cj) & ni & ~nj) | ((ci >= cj) & ~ni & ~nj);
  return {{"all", true},
          {"none", false},
          {"causal", masks::causal()},
          {"sliding window", masks::window(9, 0)},
          {"two-sided window", masks::window(5, 8)},
          {"dilated", (abs(i - j) <= 9) & (abs(i - j) % 4 == 0)},
          {"global and window", (abs(i - j) <= 3) | global(i) | global(j)},
          {"prefix", (i >= j) | (j < 13)},
          {"documents", documents},
          {"causal documents", documents & (i - start(i) >= j - start(j))},
          {"shared prefix", ((j >= start(i)) & (i >= j)) | ((start(i) > 0) & (j < 17))},
          {"lengths", masks::lengths("lengths")},
          {"causal lengths", masks::causal() & masks::lengths("lengths")},
          {"neighborhood", natten},
          {"block diffusion", diffusion},
          {"batched causal", (floor_div(i, 10) == floor_div(j, 10)) & (i % 10 >= j % 10)},
          {"strided", (i >= j) & ((i - j < 6) | (j % 6 == 5))},
          {"real slope", cast(i, Type::real) * 0.5 >= cast(j, Type::real)}};
}

TEST(BlockMask, NamedMasksEqualTheCounted) {
  for (const auto& [name, keep] : named_masks()) {
    for (const int64_t block : {1, 7, 16}) {
      for (const int64_t offset : {0, 8, -5}) {
        const Counts counts = count(keep, block, block, offset);
        EXPECT_EQ(counts.wrong, 0) << name << ", block " << block << ", offset " << offset;
        EXPECT_EQ(counts.loose, 0) << name << ", block " << block << ", offset " << offset;
      }
    }
    const Counts counts = count(keep, 7, 16);
    EXPECT_EQ(counts.loose, 0) << name << ", blocks 7 x 16";
    EXPECT_EQ(count(keep, 128, 128).wrong, 0) << name;
  }
}

TEST(BlockMask, RandomMasksAreSound) {
  int64_t loose = 0, decided = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    RandomExpr random(seed);
    const Expr keep = random.boolean(4);
    if (dependence(keep).dot) continue;
    const int64_t blocks[] = {1, 7, 16};
    const auto ids = [](const Expr& expr) {
      for (const auto& entry : flatten({expr}).entries) {
        if (entry.expr.op() == Op::capture && entry.expr.type() == Type::real) return false;
      }
      return true;
    };
    if (!ids(keep)) continue;
    const Counts counts = count(keep, blocks[random.below(3)], blocks[random.below(3)], random.below(7) - 3);
    EXPECT_EQ(counts.wrong, 0) << to_string(keep) << " seed " << seed;
    loose += counts.loose;
    decided += counts.decided;
  }
  EXPECT_GT(decided, 1000);
  EXPECT_LT(loose, decided / 20);
}

TEST(BlockMask, WithoutKnowledgeOfCapturesIsSometimes) {
  Tile whole;
  whole.queries = 64, whole.keys = 64;
  const BlockMask mask = block_mask(masks::causal() & masks::documents("a", "b"), whole, 16, 16, unknown_capture);
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t c = 0; c < 4; ++c) EXPECT_EQ(mask.at(r, c), c > r ? Truth::never : Truth::sometimes);
  }
}

TEST(BlockMask, LongCausalTakesFewBounds) {
  // 8192 x 8192 blocks; the diagonal alone needs single blocks. Bounds pair by pair would take hours.
  Tile whole;
  whole.queries = whole.keys = 1 << 20;
  const BlockMask mask = block_mask(masks::causal(), whole, 128, 128, unknown_capture);
  EXPECT_EQ(mask.at(5000, 4999), Truth::always);
  EXPECT_EQ(mask.at(5000, 5000), Truth::sometimes);
  EXPECT_EQ(mask.at(5000, 5001), Truth::never);
}

TEST(BlockMask, EmptyLengths) {
  Tile whole;
  whole.keys = 5;
  const BlockMask mask = block_mask(masks::causal(), whole, 4, 4, unknown_capture);
  EXPECT_EQ(mask.rows, 0);
  EXPECT_EQ(mask.columns, 2);
  EXPECT_TRUE(mask.truth.empty());
}

TEST(BlockMask, RefusesBadArguments) {
  EXPECT_EQ(message_of([] { block_mask(query(), {}, 4, 4, unknown_capture); }),
            "[block_mask] expected a keep of type bool; found int");
  EXPECT_EQ(message_of([] { block_mask(masks::causal(), {}, 0, 4, unknown_capture); }),
            "[block_mask] expected blocks of at least 1 query and 1 key; found 0 and 4");
}

}  // namespace
}  // namespace regard
