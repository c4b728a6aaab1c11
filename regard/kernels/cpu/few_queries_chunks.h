#pragma once

#include <vector>

#include "regard/kernels/cpu/captures.h"
#include "regard/kernels/cpu/program_cache.h"

namespace regard::kernels {

/// At most kLanes keys that lie together.
struct KeyBlock {
  int64_t first = 0, count = 0;
  bool masked = false;  ///< some pairs are hidden, maybe
};

/// The blocks of keys that the rows of each (batch, key head) attend to, and how they are cut into chunks, a task
/// each. What is never kept is in no block. Cuts depend on the key head's own blocks and on the number of key heads,
/// never on batch-mates or threads.
class KeyChunks {
 public:
  KeyChunks(const PairExpressions& pairs, const PairSpace& space, const std::vector<Capture>& captures,
            int64_t key_heads);

  int64_t tasks() const { return first_task_.back(); }
  int64_t units() const { return static_cast<int64_t>(first_task_.size()) - 1; }  ///< (batch, key head)
  int64_t unit_of(int64_t task) const;
  int64_t first_task(int64_t unit) const { return first_task_[static_cast<size_t>(unit)]; }
  int64_t chunks(int64_t unit) const { return first_task(unit + 1) - first_task(unit); }
  /// Blocks [begin, end) of the unit belong to the task.
  int64_t begin(int64_t unit, int64_t task) const;
  KeyBlock block(int64_t unit, int64_t index) const;

 private:
  using List = std::vector<KeyBlock>;
  const List& list_of(int64_t unit) const;
  int64_t blocks_of(int64_t unit) const;

  int64_t keys_ = 0, key_heads_ = 1, list_heads_ = 1;
  bool by_batch_ = false, by_head_ = false;
  std::vector<List> lists_;  // [batch][key head], one for all where they do not matter; empty when nothing is masked
  std::vector<int64_t> first_task_;
};

}  // namespace regard::kernels
