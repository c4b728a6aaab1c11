#include "regard/algebra/band.h"

#include <gtest/gtest.h>

namespace regard {
namespace {

void expect_band(const Expr& keep, int64_t low, int64_t high) {
  const auto band = band_of(keep);
  ASSERT_TRUE(band.has_value());
  EXPECT_EQ(band->low, low);
  EXPECT_EQ(band->high, high);
}

TEST(Band, OfMasks) {
  constexpr int64_t least = std::numeric_limits<int32_t>::min(), most = std::numeric_limits<int32_t>::max();
  expect_band(query() >= key(), least, 0);
  expect_band(key() < query(), least, -1);
  expect_band((query() >= key()) & (query() - key() < 256), -255, 0);
  expect_band(abs(query() - key()) <= 7, -7, 7);
  expect_band(abs(key() - query()) < 7, -6, 6);
  expect_band(key() + 3 > query(), -2, most);
  expect_band(-query() + 5 >= -key(), -5, most);
}

TEST(Band, OfOtherMasksIsNone) {
  EXPECT_FALSE(band_of(Expr(true)));
  EXPECT_FALSE(band_of(Expr()));
  EXPECT_FALSE(band_of(key() < 40));
  EXPECT_FALSE(band_of(row() >= column()));
  EXPECT_FALSE(band_of((query() >= key()) | (key() < 4)));
  EXPECT_FALSE(band_of(query() * 2 >= key()));
  EXPECT_FALSE(band_of((query() >= key()) & capture("keep", Type::boolean, {key()})));
}

}  // namespace
}  // namespace regard
