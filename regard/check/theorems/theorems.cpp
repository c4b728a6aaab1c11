#include "regard/check/theorem.h"

namespace regard::checking {

const std::vector<std::unique_ptr<Theorem>>& theorems() {
  static const std::vector<std::unique_ptr<Theorem>> all = [] {
    std::vector<std::unique_ptr<Theorem>> list;
    list.push_back(paths_agree());
    list.push_back(causality());
    list.push_back(cache());
    list.push_back(split());
    list.push_back(shard());
    list.push_back(packed());
    list.push_back(gradients_theorem());
    list.push_back(checkpointing());
    list.push_back(empty_rows());
    list.push_back(padding());
    list.push_back(batch_independence());
    list.push_back(threads());
    list.push_back(dtypes());
    list.push_back(maps());
    list.push_back(permutation());
    return list;
  }();
  return all;
}

}  // namespace regard::checking
