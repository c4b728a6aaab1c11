#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

/// Which tokens of a sequence lie on which rank.
namespace regard::sharding {

/// contiguous: the sequence in W parts, part r on rank r.
/// zigzag: in 2W parts, parts r and 2W-1-r on rank r, so that under a causal mask every rank has the same work.
/// Parts are as equal as they can be, longer ones first; with fewer tokens than parts some are empty.
enum class Layout : uint8_t { contiguous, zigzag };

Layout layout_from_name(const std::string& name);
const char* name_of(Layout layout);

/// Consecutive tokens: those at [begin, end) of the whole lie at [local, local + end - begin) of the rank.
struct Span {
  int64_t begin = 0, end = 0, local = 0;
  int64_t size() const { return end - begin; }
};

/// The tokens of a rank in ascending order, at most two spans, none empty.
std::vector<Span> spans_of_rank(int64_t tokens, int64_t ranks, Layout layout, int64_t rank);
int64_t count_of_rank(int64_t tokens, int64_t ranks, Layout layout, int64_t rank);

/// (n) int64: the global indices of rank's tokens, ascending.
at::Tensor token_of_rank(int64_t tokens, int64_t ranks, Layout layout, int64_t rank);

}  // namespace regard::sharding
