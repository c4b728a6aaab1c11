#pragma once

#include <memory>
#include <vector>

#include "regard/algebra/spec.h"

namespace regard::ops {

/// The evaluation order of one resolved spec and its derivatives: one shared graph, and where its parts stand in it
/// (positions in graph.entries; -1 where absent). Made once per spec.
struct Plan {
  /// A leaf that carries a gradient (a dot or the read of a real capture), and what each part's derivative by it is.
  struct Leaf {
    int entry;
    int score, weight;
    std::vector<int> pairs;
  };
  Graph graph;
  int score, keep, weight, counted;
  struct Pair {
    int value, bucket;
    int64_t buckets;
  };
  std::vector<Pair> pairs;
  std::vector<Leaf> leaves;
  bool keep_all = false;  ///< keep is the constant true
  bool counted_as_keep = false;
  bool weight_one = false;
};

/// The plan of an interned spec, made once and kept while it is in use (and for some thousand specs beyond).
std::shared_ptr<const Plan> plan_of(const std::shared_ptr<const AttentionSpec>& resolved);

}  // namespace regard::ops
