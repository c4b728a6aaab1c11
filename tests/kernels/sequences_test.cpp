// Packed sequences: taken out of the mask where the captured numbers are in order, and only there.
#include "regard/kernels/cpu/sequences.h"

#include <gtest/gtest.h>

#include "regard/kernels/cpu/cut.h"
#include "regard/kernels/cpu/tile.h"

namespace regard::kernels::testing {
namespace {

Expr read(const char* name, Expr token) { return capture(name, Type::integer, {batch(), std::move(token)}); }

const Expr& same_sequence() {
  static const Expr equal = read("q", row()) == read("k", column());
  return equal;
}

struct Call {
  std::vector<int64_t> q = {0, 0, 0, 2, 2, 3}, k = {0, 1, 1, 2, 2, 2, 2};
  std::vector<int64_t> q_place = {0, 1, 2, 0, 1, 0}, k_place = {0, 0, 1, 0, 1, 2, 3};
  PairExpressions pairs;

  std::vector<Capture> captures() const {
    const auto of = [](const char* name, const std::vector<int64_t>& x) {
      const auto length = static_cast<int64_t>(x.size());
      return Capture{name, x.data(), Element::int64, {1, length}, {length, 1}, nullptr};
    };
    return {of("q", q), of("k", k), of("q_place", q_place), of("k_place", k_place)};
  }
  PairSpace space() const { return {1, 1, static_cast<int64_t>(q.size()), static_cast<int64_t>(k.size()), 0, 1}; }
  std::optional<Sequences> take(const Expr& keep) {
    pairs = {scale() * dot(), keep, keep, Expr()};
    return Sequences::take(pairs, space(), captures());
  }
};

TEST(Sequences, AreTakenOutOfTheMask) {
  Call call;
  const auto found = call.take(same_sequence());
  ASSERT_TRUE(found);
  EXPECT_FALSE(call.pairs.masked());
  EXPECT_EQ(found->query_starts, (std::vector<int64_t>{0, 3, 3, 5, 6}));
  EXPECT_EQ(found->key_starts, (std::vector<int64_t>{0, 1, 3, 7, 7}));
  EXPECT_EQ(found->of_query(2), 0);
  EXPECT_EQ(found->of_query(3), 2);
  EXPECT_EQ(found->shift(2), 0);
  EXPECT_EQ(found->shift(3), 2);
}

TEST(Sequences, CausalOverPlacesIsABand) {
  Call call;
  const Expr causal = read("q_place", row()) >= read("k_place", column());
  auto found = call.take(causal & same_sequence());
  ASSERT_TRUE(found);
  EXPECT_TRUE(same(call.pairs.keep, causal));
  const auto band = found->band_of(call.pairs.keep, call.space(), call.captures());
  ASSERT_TRUE(band);
  EXPECT_EQ(band->high, 0);
  EXPECT_FALSE(found->band_of(query() >= key(), call.space(), call.captures())) << "places in the row";
  EXPECT_FALSE(found->band_of(causal & (query() >= key()), call.space(), call.captures()));
  call.k_place[4] = 7;
  EXPECT_FALSE(found->band_of(call.pairs.keep, call.space(), call.captures())) << "other positions";
}

TEST(Sequences, AreReadByQueryAndKeyToo) {
  Call call;
  const Expr causal = query() >= key();
  ASSERT_TRUE(call.take((read("q", query()) == read("k", key())) & causal));
  EXPECT_TRUE(same(call.pairs.keep, causal));
}

TEST(Sequences, OtherMasksStay) {
  Call call;
  EXPECT_FALSE(call.take(query() >= key()));
  EXPECT_FALSE(call.take(same_sequence() | (query() >= key())));
  EXPECT_FALSE(call.take(read("q", row()) == read("k", row())));
  call.k[6] = 0;
  EXPECT_FALSE(call.take(same_sequence())) << "numbers that fall";
}

TEST(Sequences, CutsLieBetweenStarts) {
  const std::vector<int64_t> starts = {0, 0, 70, 71, 71, 404, 420};
  const Cut cut = Cut::between(starts, kLaneUnit, kLanes);
  int64_t at = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    EXPECT_EQ(cut.begin(part), at);
    EXPECT_GT(cut.end(part), at);
    EXPECT_LE(cut.end(part) - at, kLanes);
    for (const int64_t start : starts) EXPECT_FALSE(start > at && start < cut.end(part));
    at = cut.end(part);
  }
  EXPECT_EQ(at, 420);
}

}  // namespace
}  // namespace regard::kernels::testing
