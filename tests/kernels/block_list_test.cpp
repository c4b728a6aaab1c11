// Masks written block by block: taken out of the expressions, and solved as the plain triple loop solves them.
#include "regard/kernels/cpu/block_list.h"

#include <gtest/gtest.h>

#include "regard/kernels/cpu/cut.h"
#include "regard/kernels/cpu/tile.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/run.h"

namespace regard::kernels::testing {
namespace {

constexpr int64_t kB = 2, kH = 4, kM = 70, kN = 115;

Expr blocks(const char* name, int64_t query_block, int64_t key_block) {
  return capture(name, Type::boolean, {batch(), head(), floor_div(row(), query_block), floor_div(column(), key_block)});
}

Tensor random_blocks(int64_t query_block, int64_t key_block, std::mt19937& random) {
  const auto parts = [](int64_t length, int64_t size) { return (length + size - 1) / size; };
  return random_integers({kB, kH, parts(kM, query_block), parts(kN, key_block)}, 0, 1, random);
}

Problem problem(int64_t query_block, int64_t key_block, const std::function<Expr(Expr, Expr)>& keep) {
  const Mechanism mechanism{"blocks", [&](Problem& p, std::mt19937& random) {
                              p.query_offset = 0;
                              p.spec.keep =
                                  keep(blocks("kept", query_block, key_block), blocks("full", query_block, key_block));
                              p.captures["kept"] = {Type::boolean, random_blocks(query_block, key_block, random)};
                              p.captures["full"] = {Type::boolean, random_blocks(query_block, key_block, random)};
                            }};
  return problem_of(mechanism, {kB, kH, 2, kM, kN, 20, 12}, static_cast<uint32_t>(query_block + key_block));
}

std::optional<BlockList> take(const Expr& keep, PairExpressions& pairs) {
  static const std::vector<uint8_t> bits(1 << 16, 1);
  pairs = {scale() * dot(), keep, keep, Expr()};
  const PairSpace space{kB, kH, kM, kN, 0, 1};
  std::vector<Capture> captures;
  for (const char* name : {"kept", "full"})
    captures.push_back({name, bits.data(), Element::boolean, {kB, kH, 9, 15}, {540, 135, 15, 1}, nullptr});
  return BlockList::take(pairs, space, captures);
}

TEST(BlockList, IsTakenOutOfTheMask) {
  PairExpressions pairs;
  const Expr kept = blocks("kept", 16, 16), full = blocks("full", 16, 16), causal = query() >= key();
  ASSERT_TRUE(take(kept, pairs));
  EXPECT_FALSE(pairs.masked());
  ASSERT_TRUE(take(kept & causal, pairs));
  EXPECT_TRUE(same(pairs.keep, causal));
  ASSERT_TRUE(take((full | causal) & kept, pairs));
  EXPECT_TRUE(same(pairs.keep, causal));
  EXPECT_EQ(pairs.keep.pointer(), pairs.counted.pointer());
}

TEST(BlockList, OtherMasksStay) {
  PairExpressions pairs;
  EXPECT_FALSE(take(query() >= key(), pairs));
  EXPECT_FALSE(take(blocks("kept", 15, 16), pairs)) << "blocks too small to be tiles";
  EXPECT_FALSE(take(blocks("kept", 16, 12), pairs));
  EXPECT_FALSE(take(blocks("kept", 16, 16) | (query() >= key()), pairs));
  const Expr other = capture("kept", Type::boolean, {batch(), head(), floor_div(column(), 16), floor_div(row(), 16)});
  EXPECT_FALSE(take(other, pairs));
}

TEST(BlockList, EveryFormIsSolved) {
  const std::pair<const char*, std::function<Expr(Expr, Expr)>> forms[] = {
      {"kept", [](Expr kept, Expr) { return kept; }},
      {"kept and causal", [](Expr kept, Expr) { return kept & (query() >= key() - 60); }},
      {"full or causal", [](Expr kept, Expr full) { return kept & ((query() >= key()) | full); }},
      {"full or odd", [](Expr kept, Expr full) { return (full | ((query() + key() + head()) % 3 != 0)) & kept; }},
  };
  const std::pair<int64_t, int64_t> sizes[] = {{16, 16}, {64, 48}, {33, 100}, {100, 17}};
  for (const auto& [name, keep] : forms) {
    for (const auto& [query_block, key_block] : sizes) {
      const Problem p = problem(query_block, key_block, keep);
      const std::string what = std::string(name) + ": " + describe(p);
      const Solution expected = naive(p);
      expect_alike(run_kernel<double>(p), expected, 1e-11, what);
      expect_alike(run_kernel<float>(p), expected, 5e-5, what + " float");
    }
  }
}

/// The state counts the pairs of kept blocks alone, though no mask is left.
TEST(BlockList, NormalizersThatCount) {
  for (const Normalizer::Kind kind : {Normalizer::Kind::relu, Normalizer::Kind::z_score, Normalizer::Kind::sum}) {
    Problem p = problem(64, 48, [](Expr kept, Expr) { return kept; });
    p.spec.normalizer.kind = kind;
    if (kind == Normalizer::Kind::relu) p.spec.normalizer.divisor = Normalizer::Divisor::kept;
    if (kind == Normalizer::Kind::sum) p.spec.normalizer.floor = 20;
    if (kind == Normalizer::Kind::z_score) p.spec.normalizer.epsilon = 0.1;
    expect_alike(run_kernel<double>(p), naive(p), 1e-11, describe(p), least_of(p));
    expect_alike(run_kernel<float>(p), naive(p), 5e-5, describe(p), least_of(p));
  }
}

TEST(BlockList, CutsLieInsideBlocks) {
  for (int64_t length : {1, 63, 64, 65, 197, 1000}) {
    for (int64_t block : {1, 16, 17, 64, 100, 257, 2000}) {
      const Cut cut = Cut::inside(length, block, kLaneUnit, kLanes);
      int64_t at = 0;
      for (int64_t part = 0; part < cut.parts; ++part) {
        EXPECT_EQ(cut.begin(part), at);
        EXPECT_GT(cut.end(part), at) << length << " in blocks of " << block;
        EXPECT_LE(cut.end(part) - at, kLanes);
        EXPECT_EQ(at / block, (cut.end(part) - 1) / block);
        at = cut.end(part);
      }
      EXPECT_EQ(at, length);
    }
  }
}

}  // namespace
}  // namespace regard::kernels::testing
