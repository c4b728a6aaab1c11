// The one file of Regard that is compiled with -fopenmp: at::parallel_for is a template, and without OpenMP it runs on
// one thread without a word. Nothing links OpenMP; the libgomp inside torch's wheel resolves the symbols.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>

#include "regard/base/parallel.h"

#ifndef _OPENMP
#error "regard/ops/parallel.cpp must be compiled with -fopenmp"
#endif

namespace regard {
namespace {

/// Tasks are handed out one by one: they differ in size (a causal mask, sequences of a pack).
void torch_parallel_for(int64_t tasks, const std::function<void(int64_t)>& body) {
  if (tasks == 1) return body(0);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), /*grain_size=*/1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(task);
  });
}

const ParallelFor previous = set_parallel_for(torch_parallel_for);

/// How many threads a parallel op really uses. Tasks take long enough that no thread runs two.
int64_t thread_count() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  parallel_for(at::get_num_threads(), [&](int64_t) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  return static_cast<int64_t>(seen.size());
}

TORCH_LIBRARY_FRAGMENT(regard, m) { m.def("thread_count() -> int", &thread_count); }

}  // namespace
}  // namespace regard
