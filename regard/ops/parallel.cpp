// The one file of Regard that is compiled with -fopenmp: at::parallel_for is a template, and without OpenMP it runs on
// one thread without a word. Nothing links OpenMP; the libgomp inside torch's wheel resolves the symbols.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <mutex>
#include <set>
#include <thread>

#include "regard/base/parallel.h"

#ifndef _OPENMP
#error "regard/ops/parallel.cpp must be compiled with -fopenmp"
#endif

namespace regard {
namespace {

void torch_parallel_for(int64_t tasks, const std::function<void(int64_t)>& body) {
  at::parallel_for(0, tasks, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(task);
  });
}

const ParallelFor previous = set_parallel_for(torch_parallel_for);

/// How many threads a parallel op really uses.
int64_t thread_count() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  parallel_for(at::get_num_threads(), [&](int64_t) {
    const std::lock_guard<std::mutex> lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return static_cast<int64_t>(seen.size());
}

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("thread_count() -> int", &thread_count); }

}  // namespace
}  // namespace regard
