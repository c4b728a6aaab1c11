#include "regard/base/parallel.h"

#include <atomic>

namespace regard {
namespace {

void serial(int64_t tasks, const std::function<void(int64_t)>& body) {
  for (int64_t task = 0; task < tasks; ++task) body(task);
}

std::atomic<ParallelFor> current{serial};

}  // namespace

void parallel_for(int64_t tasks, const std::function<void(int64_t)>& body) {
  current.load()(tasks, body);
}

ParallelFor set_parallel_for(ParallelFor implementation) { return current.exchange(implementation); }

}  // namespace regard
