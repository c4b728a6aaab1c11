#include "regard/algebra/capture_class.h"

#include "message.h"

namespace regard {
namespace {

CaptureClass of(std::vector<Expr> indices) { return capture_class(capture("t", Type::real, std::move(indices))); }

TEST(CaptureClass, NamesWhatIndicesVaryWith) {
  const Expr i = query(), j = key();
  EXPECT_EQ(of({}), CaptureClass::nothing);
  EXPECT_EQ(of({Expr(3), heads() - 1}), CaptureClass::nothing);
  EXPECT_EQ(of({head()}), CaptureClass::head);
  EXPECT_EQ(of({batch(), head()}), CaptureClass::head);
  EXPECT_EQ(of({head(), i}), CaptureClass::query);
  EXPECT_EQ(of({floor_div(row(), 7), i % 2}), CaptureClass::query);
  EXPECT_EQ(of({batch(), column()}), CaptureClass::key);
  EXPECT_EQ(of({i - j}), CaptureClass::offset);
  EXPECT_EQ(of({head(), j - i + keys() - 1}), CaptureClass::offset);
  EXPECT_EQ(of({min(max(i - j, -8), 8) + 8}), CaptureClass::offset);
  EXPECT_EQ(of({2 * i - 2 * j}), CaptureClass::offset);
  EXPECT_EQ(of({i + j - 2 * j}), CaptureClass::offset);
  EXPECT_EQ(of({cast(floor(cast(i - j, Type::real) * 0.5), Type::integer)}), CaptureClass::offset);
  EXPECT_EQ(of({i, j - i}), CaptureClass::query_and_offset);
  EXPECT_EQ(of({floor_div(i, 4), floor_div(j, 4)}), CaptureClass::query_and_key);
  EXPECT_EQ(of({i, j}), CaptureClass::query_and_key);
  EXPECT_EQ(of({i + j}), CaptureClass::both);
  EXPECT_EQ(of({floor_div(i, 4) - floor_div(j, 4)}), CaptureClass::both);
  EXPECT_EQ(of({2 * i - j}), CaptureClass::both);
  EXPECT_EQ(of({j, i - j}), CaptureClass::both);
  EXPECT_EQ(of({cast(dot(), Type::integer)}), CaptureClass::both);
  EXPECT_EQ(of({capture("ids", Type::integer, {batch(), j})}), CaptureClass::indirect);
  EXPECT_EQ(of({i, capture("ids", Type::integer, {})}), CaptureClass::indirect);
}

TEST(CaptureClass, RefusesOthers) {
  EXPECT_EQ(message_of([] { capture_class(dot()); }), "[capture_class] expected a capture; found dot()");
  EXPECT_STREQ(name_of(CaptureClass::query_and_offset), "query_and_offset");
}

}  // namespace
}  // namespace regard
