#include "regard/base/names.h"

#include <gtest/gtest.h>

#include "regard/base/error.h"
#include "regard/base/parallel.h"

namespace regard {
namespace {

TEST(Names, NearestByEditDistance) {
  EXPECT_EQ(nearest("softmx", {"sigmoid", "softmax", "sum"}), "softmax");
  EXPECT_EQ(nearest("zzzzzz", {"sigmoid", "softmax"}), "");
  EXPECT_EQ(nearest("", {"a"}), "");
  EXPECT_EQ(nearest("a", {}), "");
  EXPECT_EQ(suggestion("kee", {"keep", "score"}), "; did you mean 'keep'?");
  EXPECT_EQ(suggestion("qqqq", {"keep", "score"}), "");
  EXPECT_EQ(quoted_list({"a", "b"}), "'a', 'b'");
  EXPECT_EQ(quoted_list({}), "");
}

TEST(Error, SaysWhatWasExpectedAndFound) {
  try {
    require(false, "function", "a thing", "another");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[function] expected a thing; found another");
  }
  EXPECT_NO_THROW(require(true, "function", "a thing", "another"));
}

TEST(ParallelFor, RunsEveryTaskOnceThroughTheSeam) {
  std::vector<int> runs(17);
  parallel_for(17, [&runs](int64_t task) { ++runs[static_cast<size_t>(task)]; });
  EXPECT_EQ(runs, std::vector<int>(17, 1));
  static int calls = 0;
  const ParallelFor before = set_parallel_for([](int64_t tasks, const std::function<void(int64_t)>& body) {
    ++calls;
    for (int64_t task = tasks; task-- > 0;) body(task);
  });
  parallel_for(17, [&runs](int64_t task) { ++runs[static_cast<size_t>(task)]; });
  set_parallel_for(before);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(runs, std::vector<int>(17, 2));
}

}  // namespace
}  // namespace regard
