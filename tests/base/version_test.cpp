#include "regard/base/version.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

TEST(Version, IsTheOneInTheVersionFile) {
  std::ifstream file(std::string(REGARD_SOURCE_DIR) + "/VERSION");
  std::string expected;
  ASSERT_TRUE(std::getline(file, expected));
  EXPECT_EQ(expected, regard::version());
}
