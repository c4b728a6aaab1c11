#include "regard/scale/layout.h"

#include <algorithm>

#include "regard/base/error.h"
#include "regard/base/names.h"

namespace regard::sharding {
namespace {

constexpr const char* kNames[] = {"contiguous", "zigzag"};

/// Where part `index` of `parts` begins; the first tokens % parts parts have one token more.
int64_t begin_of(int64_t tokens, int64_t parts, int64_t index) {
  return index * (tokens / parts) + std::min(index, tokens % parts);
}

void check(int64_t tokens, int64_t ranks, int64_t rank) {
  require(tokens >= 0, "token_of_rank", "a number of tokens of at least 0", std::to_string(tokens));
  require(ranks >= 1, "token_of_rank", "at least one rank", std::to_string(ranks));
  if (rank < 0 || rank >= ranks)
    fail("token_of_rank", "a rank in [0, " + std::to_string(ranks) + ")", std::to_string(rank));
}

}  // namespace

Layout layout_from_name(const std::string& name) {
  for (const Layout layout : {Layout::contiguous, Layout::zigzag})
    if (name == name_of(layout)) return layout;
  fail("layout", "contiguous or zigzag", "'" + name + "'" + suggestion(name, {kNames[0], kNames[1]}));
}

const char* name_of(Layout layout) { return kNames[static_cast<size_t>(layout)]; }

std::vector<Span> spans_of_rank(int64_t tokens, int64_t ranks, Layout layout, int64_t rank) {
  check(tokens, ranks, rank);
  std::vector<Span> spans;
  const auto add = [&](int64_t parts, int64_t index) {
    const int64_t begin = begin_of(tokens, parts, index), end = begin_of(tokens, parts, index + 1);
    if (begin == end) return;
    if (!spans.empty() && spans.back().end == begin) {
      spans.back().end = end;
      return;
    }
    spans.push_back({begin, end, spans.empty() ? 0 : spans.back().local + spans.back().size()});
  };
  if (layout == Layout::contiguous) {
    add(ranks, rank);
  } else {
    add(2 * ranks, rank);
    add(2 * ranks, 2 * ranks - 1 - rank);
  }
  return spans;
}

int64_t count_of_rank(int64_t tokens, int64_t ranks, Layout layout, int64_t rank) {
  int64_t count = 0;
  for (const Span& span : spans_of_rank(tokens, ranks, layout, rank)) count += span.size();
  return count;
}

at::Tensor token_of_rank(int64_t tokens, int64_t ranks, Layout layout, int64_t rank) {
  std::vector<at::Tensor> parts = {at::empty({0}, at::kLong)};
  for (const Span& span : spans_of_rank(tokens, ranks, layout, rank))
    parts.push_back(at::arange(span.begin, span.end, at::kLong));
  return at::cat(parts);
}

}  // namespace regard::sharding
