#include "regard/kernels/cpu/few_queries_chunks.h"

#include <algorithm>

#include "regard/base/parallel.h"
#include "regard/kernels/cpu/rounding.h"

namespace regard::kernels {
namespace {

/// Chunks that all heads of one batch entry have together: four for each of 16 cores, so that none waits long.
constexpr int64_t kChunks = 64;
/// Least and most blocks a chunk. 256 keys are some ten microseconds, many times the cost of a task; 8192 keys keep
/// the sums of float32 short.
constexpr int64_t kLeastBlocks = 4, kMostBlocks = 128;

int64_t chunks_for(int64_t blocks, int64_t key_heads) {
  const int64_t size = std::clamp(ceil_div(blocks * key_heads, kChunks), kLeastBlocks, kMostBlocks);
  return std::max<int64_t>(1, ceil_div(blocks, size));
}

/// The blocks that some query heads of one batch entry attend to, found by halving: cost grows with the edges of the
/// mask, not with the keys.
class Search {
 public:
  Search(const PairExpressions& pairs, const PairSpace& space, const CaptureRange& ranges)
      : keep_(pairs.keep),
        counted_(pairs.counted),
        apart_(pairs.counted.pointer() != pairs.keep.pointer()),
        space_(space),
        ranges_(ranges) {}

  std::vector<KeyBlock> run(int64_t batch, int64_t head, int64_t heads) {
    batch_ = batch;
    head_ = head;
    heads_ = heads;
    found_.clear();
    const int64_t blocks = ceil_div(space_.keys, kLanes);
    if (blocks > 0) search(0, blocks);
    return std::move(found_);
  }

 private:
  void search(int64_t begin, int64_t end) {
    const Truth found = truth(begin * kLanes, std::min(end * kLanes, space_.keys));
    if (found == Truth::never) return;
    if (found == Truth::sometimes && end - begin > 1) {
      const int64_t middle = begin + (end - begin) / 2;
      search(begin, middle);
      search(middle, end);
      return;
    }
    for (int64_t n = begin; n < end; ++n) {
      const int64_t first = n * kLanes;
      found_.push_back({first, std::min(kLanes, space_.keys - first), found == Truth::sometimes});
    }
    if (found == Truth::sometimes) trim(found_.back());
  }

  /// A window may end inside a block.
  void trim(KeyBlock& block) {
    int64_t end = block.first + block.count;
    while (end > block.first && truth((end - 1) / kLaneUnit * kLaneUnit, end) == Truth::never) {
      end = (end - 1) / kLaneUnit * kLaneUnit;
    }
    while (block.first < end && truth(block.first, std::min(block.first + kLaneUnit, end)) == Truth::never) {
      block.first += kLaneUnit;
    }
    block.count = end - block.first;
    if (block.count <= 0) found_.pop_back();
  }

  /// Of keep and counted together and of all heads: never when all are, always when all are.
  Truth truth(int64_t key, int64_t end) {
    Truth all = Truth::sometimes;
    for (int64_t h = head_; h < head_ + heads_; ++h) {
      const Tile tile = space_.tile(batch_, h, 0, space_.queries, key, end);
      const Truth kept = keep_.truth(tile, ranges_);
      if (h == head_) all = kept;
      if (kept != all || kept == Truth::sometimes) return Truth::sometimes;
      if (apart_ && counted_.truth(tile, ranges_) != all) return Truth::sometimes;
    }
    return all;
  }

  Analysis keep_, counted_;
  const bool apart_;
  const PairSpace& space_;
  const CaptureRange& ranges_;
  int64_t batch_ = 0, head_ = 0, heads_ = 1;
  std::vector<KeyBlock> found_;
};

}  // namespace

KeyChunks::KeyChunks(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures,
                     int64_t key_heads)
    : keys_(space.keys), key_heads_(key_heads) {
  if (pairs.masked()) {
    const Dependence keep = dependence(pairs.keep), counted = dependence(pairs.counted);
    by_batch_ = keep.batch || counted.batch;
    by_head_ = keep.head || counted.head;
    list_heads_ = by_head_ ? key_heads : 1;
    lists_.resize(static_cast<size_t>((by_batch_ ? space.batches : 1) * list_heads_));
    const CaptureRange ranges = capture_range(captures);
    const int64_t group = by_head_ ? space.heads / key_heads : 1;
    parallel_for(static_cast<int64_t>(lists_.size()), [&](int64_t n) {
      Search search(pairs, space, ranges);
      lists_[static_cast<size_t>(n)] = search.run(n / list_heads_, n % list_heads_ * group, group);
    });
  }
  first_task_.push_back(0);
  for (int64_t unit = 0; unit < space.batches * key_heads; ++unit) {
    first_task_.push_back(first_task_.back() + chunks_for(blocks_of(unit), key_heads));
  }
}

const KeyChunks::List& KeyChunks::list_of(int64_t unit) const {
  const int64_t batch = by_batch_ ? unit / key_heads_ : 0, head = by_head_ ? unit % key_heads_ : 0;
  return lists_[static_cast<size_t>(batch * list_heads_ + head)];
}

int64_t KeyChunks::blocks_of(int64_t unit) const {
  return lists_.empty() ? ceil_div(keys_, kLanes) : static_cast<int64_t>(list_of(unit).size());
}

int64_t KeyChunks::unit_of(int64_t task) const {
  return std::upper_bound(first_task_.begin(), first_task_.end(), task) - first_task_.begin() - 1;
}

int64_t KeyChunks::begin(int64_t unit, int64_t task) const {
  return blocks_of(unit) * (task - first_task(unit)) / chunks(unit);
}

KeyBlock KeyChunks::block(int64_t unit, int64_t index) const {
  if (!lists_.empty()) return list_of(unit)[static_cast<size_t>(index)];
  return {index * kLanes, std::min(kLanes, keys_ - index * kLanes), false};
}

}  // namespace regard::kernels
